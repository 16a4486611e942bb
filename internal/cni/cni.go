// Package cni connects containers by plugins of the Container Network Interface
// (https://www.cni.dev/docs/spec, 0.1.0 to 1.1.0): programs of the administrator's
// that a network's configuration names, each of which does one part.
//
//	snapctl run --network cni:NAME
//
//	/etc/cni/net.d/*.conflist   the configuration NAME
//	/opt/cni/bin/TYPE           its plugins; run by the supervisor, which is not the process that serves FUSE
//	RUN/netns/ID                the container's namespace, a name that plugins can open, until they have undone what they did
//	ROOT/cni/ID.json            an attachment: the record of what was asked of which plugins
//	ROOT/cni/cache/             their results, as libcni keeps them
//
// An attachment is on record, on disk, before a plugin runs, together with the
// configuration as it is then. It is taken away by DEL, which the plugins of a
// container get when it has ended, as often as it takes; also by a daemon that
// finds the record after whatever death, of its own or of the machine: plugins
// keep addresses in files. DEL may be called for what was never made.
//
// Invariant: ADD is never called for a container whose last ADD was not undone.
package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/snapfs/snapfs/internal/control"
)

// A Host does for a Service what a process that serves file systems must not do itself.
type Host interface {
	// RunPlugin runs a program. Its standard error is returned also when err is not
	// nil. It ends with ctx, and is not begun before another one with the word alone has ended.
	RunPlugin(ctx context.Context, path string, stdin []byte, env []string, alone string) (stdout, stderr []byte, err error)
	// MakeNetns gives a network namespace a name, a new one if ns is nil, and returns its path. One of before is replaced.
	MakeNetns(ctx context.Context, name string, ns *os.File) (path string, err error)
	// DropNetns takes the name away, if it is there.
	DropNetns(ctx context.Context, name string) error
	// Reserve takes ports of this machine for as long as the sockets are open.
	Reserve(ports []control.Port) ([]control.Binding, []*os.File, error)
}

// Options of a Service.
type Options struct {
	Root    string        // directory of the records, which outlive the machine's end
	Configs string        // directory of the networks' configurations
	Plugins []string      // directories of plugins
	Timeout time.Duration // that all plugins of a container have, together
	// Collect has the plugins collect garbage (GC, CNI 1.1) when a daemon finds that
	// the one before it has left something: they release whatever is not ours, so
	// nobody else may use the networks.
	Collect bool
	Host    Host
	Log     *slog.Logger // nil: discard
}

// A Service knows which containers are connected by plugins. It is safe for concurrent use.
type Service struct {
	Options
	base    context.Context
	cancel  context.CancelFunc
	working sync.WaitGroup
	serial  atomic.Uint64
	cni     *libcni.CNIConfig
	adding  sync.RWMutex // held for reading by who adds, for writing by who collects garbage

	mu       sync.Mutex
	attached map[string]*attachment // by container
	alive    func(id string) bool   // nil before Reconcile
}

// attachment is a container's connection to a network. turn is held by who runs
// plugins for it: mu never is, then.
type attachment struct {
	turn chan struct{} // of capacity 1
	record
	socks     []*os.File // reserve its ports
	inherited bool       // its record is that of a daemon before
	released  bool       // it is to be undone; mu
	failed    error      // why it was not; mu
	undone    bool       // it has been; turn
}

// record is what is on disk of an attachment.
type record struct {
	control.Endpoint // what the plugins have made; of ID, Serial and Network before that
	List             json.RawMessage
	Netns            string
	Args             [][2]string    `json:",omitempty"`
	Capabilities     map[string]any `json:",omitempty"`
	Want             []control.Port `json:",omitempty"` // to be reserved
	Made             bool           // ADD has succeeded
}

const (
	recordSuffix = ".json"
	newPrefix    = "new-" // of a record that is being written
	idLen        = 64
	ifName       = "eth0" // the container's end of its link, as Docker and Kubernetes call it
)

// How long DEL is waited for when the daemon ends, and until it is tried again after it failed.
const (
	closeTime  = 5 * time.Second
	firstAgain = 5 * time.Second
	lastAgain  = 10 * time.Minute
)

// Open reads the records, and reserves their ports again before anybody can ask for
// those. It runs no plugin; see Reconcile. Close ends it.
func Open(ctx context.Context, o Options) (*Service, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{Options: o, attached: map[string]*attachment{}}
	s.serial.Store(uint64(time.Now().UnixNano())) // above those of a daemon before
	s.cni = libcni.NewCNIConfigWithCacheDir(o.Plugins, filepath.Join(o.Root, "cache"), &runner{s})
	entries, err := os.ReadDir(o.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) { // save was killed
			os.Remove(filepath.Join(o.Root, e.Name()))
			continue
		}
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || len(id) != idLen {
			continue
		}
		r, err := readRecord(filepath.Join(o.Root, e.Name()), id)
		if err != nil { // it is kept: somebody may want to know what it was
			o.Log.Error("record of a container's network", "container", id, "err", err)
			continue
		}
		a := &attachment{turn: make(chan struct{}, 1), record: *r, inherited: true}
		if r.Made {
			if _, a.socks, err = o.Host.Reserve(exact(r.Ports)); err != nil {
				o.Log.Warn("a published port is not reserved", "container", id, "err", err)
			}
		}
		s.attached[id] = a
	}
	s.base, s.cancel = context.WithCancel(context.WithoutCancel(ctx)) // see Close
	return s, nil
}

func readRecord(path, id string) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, err
	}
	if r.ID != id || r.Network == "" {
		return nil, errors.New("it is incomplete")
	}
	if _, err := parseList(r.List); err != nil {
		return nil, err
	}
	return r, nil
}

func (s *Service) path(id string) string { return filepath.Join(s.Root, id+recordSuffix) }

// save puts a record on disk, for good.
func (s *Service) save(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.Root, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.Root, newPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.path(r.ID)); err != nil {
		return err
	}
	return syncDir(s.Root)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// A Request asks for an attachment.
type Request struct {
	ID         string     // of the container, 64 hex digits
	Network    string     // name of its configuration
	IPv4, IPv6 netip.Addr // zero: any
	MAC        string     // "": any
	Ports      []control.Port
	Namespace  *os.File // that it is to be in, such as one of a user namespace's; nil: a new one. It stays the caller's
}

// Attach connects a container that is about to start, and returns the namespace
// that it is to run in; the caller closes it. An earlier attachment is undone first.
func (s *Service) Attach(ctx context.Context, q Request) (_ *control.Endpoint, _ *os.File, err error) {
	list, err := s.usable(q.Network)
	if err != nil {
		return nil, nil, err
	}
	if err := s.cleared(q.ID); err != nil {
		return nil, nil, err
	}
	a := &attachment{turn: make(chan struct{}, 1)}
	a.Endpoint = control.Endpoint{ID: q.ID, Serial: s.serial.Add(1), Network: q.Network}
	a.Want, a.List = q.Ports, list.Bytes
	if a.Ports, a.socks, err = s.Host.Reserve(q.Ports); err != nil {
		return nil, nil, err
	}
	if a.Args, a.Capabilities, err = arguments(list, q, a.Ports); err == nil {
		err = s.enter(a)
	}
	if err != nil {
		closeAll(a.socks)
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			s.Release(q.ID, a.Serial)
		}
	}()
	ns, err := s.add(ctx, a, list, q)
	if err != nil {
		return nil, nil, err
	}
	e := a.Endpoint
	return &e, ns, nil
}

// usable is the configuration of a network whose plugins are all there: what they
// cannot begin they could not undo either.
func (s *Service) usable(name string) (*libcni.NetworkConfigList, error) {
	list, err := s.load(name)
	if err != nil {
		return nil, err
	}
	for _, p := range list.Plugins {
		for _, plugin := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if plugin == "" {
				continue
			}
			if _, err := (&runner{s}).FindInPath(plugin, s.Plugins); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// Check says whether a container could be attached: the network is configured,
// and its plugins understand what is asked for.
func (s *Service) Check(q Request) error {
	list, err := s.usable(q.Network)
	if err != nil {
		return err
	}
	_, _, err = arguments(list, q, make([]control.Binding, len(q.Ports)))
	return err
}

// cleared returns when a container has no attachment any more.
func (s *Service) cleared(id string) error {
	s.Release(id, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.attached[id]; a != nil {
		return fmt.Errorf("what an earlier start has left is not undone: %w", cmp.Or(a.failed, context.Canceled))
	}
	return nil
}

// enter puts an attachment on record, before anything is made for it.
func (s *Service) enter(a *attachment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attached[a.ID] != nil {
		return fmt.Errorf("container %s is connected already", a.ID[:min(12, len(a.ID))])
	}
	if err := s.save(&a.record); err != nil {
		return err
	}
	s.attached[a.ID] = a
	return nil
}

// add has the plugins connect a container.
func (s *Service) add(ctx context.Context, a *attachment, list *libcni.NetworkConfigList, q Request) (ns *os.File, err error) {
	if err := a.take(ctx); err != nil {
		return nil, err
	}
	defer a.leave()
	s.adding.RLock()
	defer s.adding.RUnlock()
	if a.Netns, err = s.Host.MakeNetns(ctx, a.ID, q.Namespace); err != nil {
		return nil, err
	}
	if err := s.save(&a.record); err != nil {
		return nil, err
	}
	ctx, cancel := s.limit(ctx)
	defer cancel()
	var res types.Result
	err = guard(func() (err error) {
		res, err = s.cni.AddNetworkList(ctx, list, a.conf())
		return err
	})
	if err != nil {
		return nil, err
	}
	made := a.record
	if err := guard(func() error { return read(&made.Endpoint, res) }); err != nil {
		return nil, fmt.Errorf("the result of the plugins: %w", err)
	}
	if err := granted(&made.Endpoint, q); err != nil {
		return nil, err
	}
	made.Made = true
	if !made.IPv6.IsValid() { // then nothing is published there
		made.Ports = slices.DeleteFunc(slices.Clone(made.Ports), func(b control.Binding) bool { return b.HostIP.Is6() })
	}
	if err := s.save(&made); err != nil {
		return nil, err
	}
	s.mu.Lock()
	a.record = made
	s.mu.Unlock()
	return os.Open(a.Netns)
}

// limit is the time that plugins have.
func (s *Service) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("it has not ended in the %v that the network's plugins have (network.cni_timeout of the daemon's configuration)", s.Timeout))
}

// guard makes an error of a panic of libcni: what plugins say has to be as strange as it likes.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("libcni does not cope with what a plugin says: %v", p)
		}
	}()
	return f()
}

func (a *attachment) take(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *attachment) leave() { <-a.turn }

// conf is what the plugins are told of a container.
func (a *attachment) conf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: a.ID, NetNS: a.Netns, IfName: ifName, Args: a.Args, CapabilityArgs: a.Capabilities}
}

// Endpoint is that of a container; nil if it is not connected.
func (s *Service) Endpoint(id string) *control.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attached[id]
	if a == nil || a.released || !a.Made {
		return nil
	}
	e := a.Endpoint
	return &e
}

// Release has the plugins undo what they did for a container, if it is still the
// attachment with that serial; 0 is any. It returns when that is done, or has failed:
// then it is logged, and tried again until it succeeds.
func (s *Service) Release(id string, serial uint64) {
	s.mu.Lock()
	a := s.attached[id]
	if a == nil || serial != 0 && a.Serial != serial {
		s.mu.Unlock()
		return
	}
	first := !a.released
	a.released = true
	s.mu.Unlock()
	err := s.undo(a)
	if err == nil || !first || s.base.Err() != nil {
		return
	}
	s.Log.Warn("a container's network is not undone; trying again", "container", id, "network", a.Network, "err", err)
	s.working.Go(func() { s.again(a) })
}

// again undoes an attachment, however long that takes.
func (s *Service) again(a *attachment) {
	wait := firstAgain
	for {
		t := time.NewTimer(wait)
		select {
		case <-s.base.Done():
			t.Stop()
			return
		case <-t.C:
		}
		err := s.undo(a)
		if err == nil || s.base.Err() != nil {
			return
		}
		wait = min(2*wait, lastAgain)
		s.Log.Warn("a container's network is not undone; trying again", "container", a.ID, "network", a.Network, "err", err, "wait", wait)
	}
}

// undo has the plugins undo an attachment, and forgets it.
func (s *Service) undo(a *attachment) (err error) {
	if err := a.take(s.base); err != nil {
		return err
	}
	defer a.leave()
	if a.undone {
		return nil
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		a.failed = err
	}()
	ctx, cancel := s.limit(s.base)
	defer cancel()
	list, err := parseList(a.List)
	if err != nil {
		return err
	}
	conf := a.conf()
	if !isNetns(conf.NetNS) { // it went with the machine: that is how plugins are told
		conf.NetNS = ""
	}
	if err := guard(func() error { return s.cni.DelNetworkList(ctx, list, conf) }); err != nil {
		return err
	}
	if err := s.Host.DropNetns(ctx, a.ID); err != nil {
		return err
	}
	s.forget(a)
	return nil
}

// forget removes the record of what is undone.
func (s *Service) forget(a *attachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(s.path(a.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Log.Warn("record of a container's network", "container", a.ID, "err", err) // it is undone once more by the next daemon
	}
	a.undone = true
	closeAll(a.socks)
	delete(s.attached, a.ID)
}

// Publisher is the container at which a port is published, until that is undone,
// and the serial of its attachment; "" if there is none.
func (s *Service) Publisher(p control.Port) (id string, serial uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ip, _ := netip.ParseAddr(p.HostIP)
	for id, a := range s.attached {
		for _, b := range a.Ports {
			if b.Proto == p.Proto && b.Host >= p.Host && b.Host <= max(p.Host, p.HostEnd) &&
				(!ip.IsValid() || b.HostIP == ip || b.HostIP.IsUnspecified()) {
				return id, a.Serial
			}
		}
	}
	return "", 0
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// Reconcile undoes what a daemon before us has left: attachments of containers of
// which alive says that nobody can use them, or that were never finished. Those that
// are being made meanwhile are ours. It returns when that is done or has failed.
func (s *Service) Reconcile(alive func(id string) bool) error {
	s.mu.Lock()
	s.alive = alive
	var left []*attachment
	for _, a := range s.attached {
		if a.inherited && !(a.Made && !a.released && alive(a.ID)) {
			left = append(left, a)
		}
	}
	s.mu.Unlock()
	s.each(left, func(a *attachment) { s.Release(a.ID, a.Serial) })
	if !s.Collect {
		return nil
	}
	var errs []error
	for _, list := range networks(left) {
		if err := s.collect(list); err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", list.Name, err))
		}
	}
	return errors.Join(errs...)
}

// each does something for several at once.
func (s *Service) each(list []*attachment, do func(*attachment)) {
	var all sync.WaitGroup
	few := make(chan struct{}, 4)
	for _, a := range list {
		few <- struct{}{}
		all.Go(func() {
			defer func() { <-few }()
			do(a)
		})
	}
	all.Wait()
}

// exact asks for ports that were chosen before.
func exact(list []control.Binding) (ports []control.Port) {
	for _, b := range list {
		ports = append(ports, control.Port{HostIP: b.HostIP.String(), Host: b.Host, HostEnd: b.Host, Container: b.Container, Proto: b.Proto})
	}
	return ports
}

// networks are those of some attachments, as they were configured, each once.
func networks(left []*attachment) (lists []*libcni.NetworkConfigList) {
	for _, a := range left {
		list, err := parseList(a.List)
		if err == nil && !slices.ContainsFunc(lists, func(l *libcni.NetworkConfigList) bool { return l.Name == list.Name }) {
			lists = append(lists, list)
		}
	}
	return lists
}

// collect tells the plugins of a network which attachments are in use. They
// release what all others have.
func (s *Service) collect(list *libcni.NetworkConfigList) error {
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0"); err != nil || !ok || list.DisableGC {
		return err
	}
	s.adding.Lock()
	defer s.adding.Unlock()
	s.mu.Lock()
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, a := range s.attached {
		if a.Network == list.Name { // also those that could not be undone: that is for DEL
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.ID, IfName: ifName})
		}
	}
	s.mu.Unlock()
	ctx, cancel := s.limit(s.base)
	defer cancel()
	return guard(func() error { return s.cni.GCNetworkList(ctx, list, args) })
}

// Close undoes what nobody uses any more, as far as that takes no longer than a
// few seconds, and ends the service. The rest is for the next daemon.
func (s *Service) Close() error {
	s.mu.Lock()
	var left []*attachment
	for _, a := range s.attached {
		if a.released || s.alive != nil && !s.alive(a.ID) {
			left = append(left, a)
		}
	}
	s.mu.Unlock()
	last := time.AfterFunc(closeTime, s.cancel)
	s.each(left, func(a *attachment) { s.Release(a.ID, a.Serial) })
	last.Stop()
	s.cancel()
	s.working.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.attached {
		closeAll(a.socks)
	}
	return nil
}
