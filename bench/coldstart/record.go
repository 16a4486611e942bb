package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// A fact is a line of the output: one of its fields is set.
type fact struct {
	Session *session `json:"session,omitempty"`
	Touched *touched `json:"touched,omitempty"`
	Run     *run     `json:"run,omitempty"`
}

// A session is what was the same for the runs that follow.
type session struct {
	Begun    time.Time `json:"begun"`
	Commit   string    `json:"commit"`
	Kernel   string    `json:"kernel"`
	CPU      string    `json:"cpu"`
	Cores    int       `json:"cores"`
	MemoryMB int64     `json:"memory_mb"`
	Seed     uint64    `json:"seed"`
	Rounds   int       `json:"rounds"`
	Systems  []about   `json:"systems"`
	Images   []picture `json:"images"`
}

// about is a system and what it is; Missing is what this machine lacks for it.
type about struct {
	Name    string `json:"name"`
	About   string `json:"about"`
	Missing string `json:"missing,omitempty"`
}

// picture is an image and its task.
type picture struct {
	Name   string   `json:"name"`
	Digest string   `json:"digest"`
	Size   int64    `json:"size"` // stored bytes of its layers
	Ready  string   `json:"ready"`
	Task   []string `json:"task,omitempty"`
}

// A run is one start. Times are in seconds.
type run struct {
	Link   string `json:"link"`
	Image  string `json:"image"`
	System string `json:"system"`
	Round  int    `json:"round"`
	Error  string `json:"error,omitempty"` // then the rest is not to be believed

	Total  float64   `json:"total"`  // from the first command to ready; the median of Again where only that is measured
	Pull   float64   `json:"pull"`   // of it, until the image could be used
	Create float64   `json:"create"` // then, until the container's process was made
	Ready  float64   `json:"ready"`  // then, until it was ready
	Again  []float64 `json:"again"`  // further starts of the same on the same node

	Down        int64            `json:"down"` // bytes that arrived from the registry until ready
	Up          int64            `json:"up"`
	Requests    int              `json:"requests"`
	Connections int64            `json:"connections"`
	CPU         float64          `json:"cpu"`       // of the system's processes until ready, not of the container
	Peak        int64            `json:"peak"`      // bytes; sum of the most that each process alive at ready had resident
	Processes   []process        `json:"processes"` // these
	Stats       map[string]int64 `json:"stats,omitempty"`
	Line        timeline         `json:"line"`
	Load        float64          `json:"load"` // of the machine in the last minute, before

	session int // its number among those that were read
}

// A timeline is what came over the link until ready.
type timeline struct {
	Bytes    []arrived `json:"bytes"`
	Requests []request `json:"requests"`
}

// arrived is how many bytes had come by a time.
type arrived struct {
	At    float64 `json:"at"`
	Bytes int64   `json:"bytes"`
}

// request is one to the registry: when it came there, and when its answer had been sent.
type request struct {
	Begin float64 `json:"begin"`
	End   float64 `json:"end"` // 0: not by then
	What  string  `json:"what"`
	Bytes int64   `json:"bytes"`
}

func readFacts(r io.Reader) (list []fact, err error) {
	d := json.NewDecoder(bufio.NewReader(r))
	for n := 1; ; n++ {
		var f fact
		switch err := d.Decode(&f); err {
		case nil:
			list = append(list, f)
		case io.EOF:
			return list, nil
		default:
			return nil, fmt.Errorf("fact %d: %w", n, err)
		}
	}
}

func loadFacts(files []string) (all []fact, err error) {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		list, err := readFacts(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

// writeFact adds a line to the output.
func writeFact(w io.Writer, f fact) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

func jsonText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings have a JSON form
	}
	return string(b)
}
