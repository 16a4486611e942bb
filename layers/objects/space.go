package objects

import "github.com/snapfs/snapfs/layers"

// Space is what something takes on disk.
type Space struct {
	Bytes int64 // of blocks; of an object in a pack, its own and its entry's
	Files int
}

// Add adds o.
func (s *Space) Add(o Space) { s.Bytes, s.Files = s.Bytes+o.Bytes, s.Files+o.Files }

// Spaces tells what objects take on disk, one by one.
type Spaces struct {
	s     *Store
	parts map[layers.Sum]Space
}

// Spaces looks at what there is of incomplete objects; Of then looks at others
// as it is asked.
func (s *Store) Spaces() (*Spaces, error) {
	names, err := s.list("partial")
	if err != nil {
		return nil, err
	}
	parts := map[layers.Sum]Space{}
	for _, name := range names {
		sum, ok := partialSum(name)
		st, err := s.stat("partial/" + name)
		if !ok || err != nil { // removed meanwhile
			continue
		}
		sp := parts[sum]
		sp.Add(Space{st.Blocks * 512, 1})
		parts[sum] = sp
	}
	return &Spaces{s, parts}, nil
}

// Of is what the store has of an object: nothing, the whole of it, or a part.
func (sp *Spaces) Of(sum layers.Sum) Space {
	all := sp.parts[sum]
	if p, e, ok := sp.s.packs.find(sum); ok {
		p.release()
		all.Bytes += e.size + packEntry
		return all
	}
	for _, dir := range dataDirs {
		if st, err := sp.s.stat(dir + sum.Path()); err == nil {
			all.Add(Space{st.Blocks * 512, 1})
			break
		}
	}
	return all
}
