package control

import (
	"encoding/json"
	"net/netip"
	"time"
)

// Operations of the daemon's control socket, by name, with the types of their
// arguments and results. Each runs on a connection of its own (see package comment).
const (
	OpVersion = "version" // nil → Version
	OpInfo    = "info"    // nil → Info
	OpStat    = "stat"    // nil → map[string]int64
	OpMetrics = "metrics" // nil → string: Prometheus' text format
	OpTop     = "top"     // TopArgs, events Top
	OpEvents  = "events"  // EventsArgs, events Event
	OpStop    = "daemon.stop"

	OpPull    = "image.pull"    // PullArgs, events Progress → Image
	OpImages  = "image.list"    // nil → []Image
	OpInspect = "image.inspect" // RefArgs → ImageDetail
	OpExplain = "explain"       // ExplainArgs → Explanation
	OpRmi     = "image.remove"  // RemoveImagesArgs → []Removed
	OpPush    = "image.push"    // PushArgs, events Progress → Pushed
	OpConvert = "image.convert" // ConvertArgs, events Progress → Pushed
	OpTag     = "image.tag"     // TagArgs

	OpIndex     = "index.make"   // IndexArgs, events Progress → IndexInfo
	OpIndexes   = "index.list"   // IndexListArgs → []IndexInfo: those published for an image; believed ones and newer ones first
	OpIndexSign = "index.sign"   // IndexSignArgs → IndexInfo: the newest, published anew with a signature
	OpKeygen    = "index.keygen" // KeygenArgs → Key

	OpMount   = "mount.prepare" // MountArgs, events Progress → Mount
	OpMounted = "mount.record"  // Mount: the client has mounted it at Target
	OpMounts  = "mount.list"    // nil → []Mount
	OpUmount  = "mount.remove"  // Mount (Target): the client has unmounted it

	OpCreate  = "container.create"  // CreateArgs, events Progress → Created
	OpPlan    = "container.plan"    // CreateArgs, events Progress → Planned: what OpCreate and a start would do; nothing is made
	OpStart   = "container.start"   // ContainerArgs → Created
	OpPs      = "container.list"    // PsArgs → []Container
	OpResolve = "container.resolve" // ContainerArgs → Container
	OpCInsp   = "container.inspect" // ContainerArgs → json.RawMessage
	OpLogs    = "container.logs"    // ContainerArgs → Container, and one descriptor: the directory with its log, O_PATH (see monitor.RotatedLog)
	OpRm      = "container.remove"  // RemoveContainerArgs → Container
	OpPool    = "pool"              // PoolArgs → Pool
)

// Error codes that travel over the socket.
const (
	CodeNotFound    = "not_found"
	CodeExists      = "exists"
	CodeInvalid     = "invalid"
	CodeDenied      = "denied"
	CodeInUse       = "in_use"
	CodeQuarantined = "quarantined"
	CodeUnavailable = "unavailable"
	CodeUnsupported = "unsupported"
	CodeInternal    = "internal"
)

// Version is the answer to OpVersion.
type Version struct {
	Version  string
	Commit   string
	Go       string
	Protocol int
	Pid      int // of the worker
}

// Info is the answer to OpInfo.
type Info struct {
	Version    Version
	Root, Run  string
	Backend    string            // how images are mounted: "erofs"
	Kernel     string            // uname -r
	Features   map[string]string // probed kernel features: name → "yes" or why not
	Cgroup     string            // "v1", "v2" or "hybrid"
	Images     int
	Containers int
	Running    int
	Mounts     int
	Supervisor int // pid
	Worker     int // pid
	Restarts   int // workers replaced since the supervisor started
	Containerd []ContainerdInfo
}

// ContainerdInfo is a containerd that is served.
type ContainerdInfo struct {
	Name    string
	Socket  string // ours, which it has to know
	Address string // its own
	CRI     bool   // the kubelet's image service is served, too
	Calls   int64  // that have been answered by this worker
	Error   string `json:",omitempty"` // why it is not served
}

// EventsArgs asks for what has happened. Without Follow that is what the daemon
// still knows; with it, also what will happen, until the client hangs up or Until has come.
type EventsArgs struct {
	Since, Until time.Time           `json:",omitzero"`
	After        uint64              `json:",omitempty"` // the number of an event: none up to it, and all after it
	Filter       map[string][]string `json:",omitempty"` // "type", "event", "image" and "container" → any of these
	Follow       bool                `json:",omitempty"`
}

// Event is something that has happened (see internal/events for all of them).
// One with Type "events" and Action "lost" says in its attribute "count" how many are not known any more.
type Event struct {
	Seq        uint64 `json:",omitempty"` // ascending within one worker's life
	Time       time.Time
	Type       string            // "image", "container", "fetch" or "daemon"
	Action     string            // "pull", "die", …
	ID         string            // of what it happened to: a reference, a container's ID, …
	Attributes map[string]string `json:",omitempty"`
}

// Start says where the time of a start of a container went, or that of a pull.
// Times are since Began.
type Start struct {
	Kind      string // "run", "start" or "pull"
	Ref       string
	Digest    string // of the image's manifest
	Container string `json:",omitempty"` // ID
	Name      string `json:",omitempty"` // the container's
	Began     time.Time
	Partial   bool          `json:",omitempty"` // an earlier worker saw the beginning: it is not known
	Phases    []Phase       // in the order of their beginnings; they may be at the same time, and in one another
	Running   time.Duration `json:",omitempty"` // its first process ran
	Ready     time.Duration `json:",omitempty"` // it was ready, or had ended; of a pull: the image could be used
	ReadyBy   string        `json:",omitempty"` // "line", "port", "file", "health", "quiet" or "exit"; "" with Ready: it ended before
	Error     string        `json:",omitempty"` // why it came to nothing
	Counters  Counters      // what the whole daemon did meanwhile
	Waiting   time.Duration // for how long some read waited for the network
	Missed    int           // reads that did
	Waits     []FileWait    `json:",omitempty"` // for which files, the longest first
	More      int           `json:",omitempty"` // further files, or reads
}

// Phase is a part of a Start.
type Phase struct {
	Name       string // "resolve", "index", "pull", "build", "mount", "create", "monitor", …
	ID         string `json:",omitempty"` // the layer that it is about: first 12 hex digits
	Begin, End time.Duration
	Bytes      int64 `json:",omitempty"` // that it was about
}

// FileWait says how reads of one file waited for the network. Times may be at
// the same time as others'.
type FileWait struct {
	Object  string        // digest of the file, sha256:…
	Path    string        `json:",omitempty"` // in the image; of several, one
	N       int           // reads that waited
	First   time.Duration // when the first began to
	Took    time.Duration // all of them together
	Longest time.Duration
	Bytes   int64 // that they got
	Failed  int   `json:",omitempty"` // reads that got an error
}

// Counters is some of what OpStat tells.
type Counters struct {
	Misses, Requests, Fetched int64 // of layers: reads that waited, ranges asked for, stored bytes that came
	HTTPRequests, HTTPBytes   int64 // of registries
	Kept                      int64 // plain bytes that went into the store
	Delivered                 int64 // of these, that came with a boot bundle
}

// Sub returns what was counted since before.
func (c Counters) Sub(before Counters) Counters {
	return Counters{
		Misses: c.Misses - before.Misses, Requests: c.Requests - before.Requests, Fetched: c.Fetched - before.Fetched,
		HTTPRequests: c.HTTPRequests - before.HTTPRequests, HTTPBytes: c.HTTPBytes - before.HTTPBytes, Kept: c.Kept - before.Kept, Delivered: c.Delivered - before.Delivered,
	}
}

// Progress is an event of a long operation. A line (ID) appears with its first
// event and is finished by one with Done set.
type Progress struct {
	ID     string // layer digest's first 12 hex digits, or "" for a line about the whole
	Action string // "resolving", "searching" (for a published index), "indexing", "pulling", "building", "pushing", "converting", …
	Done   bool
	Off    int64 // bytes so far
	Size   int64 // bytes in all; 0 if unknown
}

// PullArgs asks for an image. Policy is "always" (the default of pull), "missing" or "never".
type PullArgs struct {
	Ref      string
	Platform string // "" is the machine's
	Policy   string
	Wait     bool // return only when every byte is local
}

// RefArgs names an image by reference, digest or a unique prefix of its ID.
type RefArgs struct{ Ref string }

// Image is one row of the list of images.
type Image struct {
	Ref      string
	Digest   string // of the manifest
	ID       string // digest of the config
	Platform string
	Created  time.Time
	Pulled   time.Time
	Size     int64 // stored bytes of its layers
	Local    int64 // of these, bytes not needing the network any more
	Layers   int
	Lazy     bool // it can be used before it is local
	Complete bool // all of it is local
}

// LayerDetail is one layer of an ImageDetail.
type LayerDetail struct {
	Digest, DiffID, MediaType string
	Size                      int64
	Format                    string // "estargz", "zstd:chunked", "tar", "tar+gzip", "tar+zstd"
	Lazy                      bool
	Why                       string // why it is not lazy
	Complete                  bool
	Local                     int64  // of Size, bytes not needing the network any more
	Origin                    string // of its index: "toc", "own", "soci", "published"
	Signer                    string `json:",omitempty"` // ID of the key that signed a published one
	Index                     string `json:",omitempty"` // root of a published one, digest of SOCI's
}

// ImageDetail is the answer to OpInspect. Manifest and Config are the
// documents as the registry sent them.
type ImageDetail struct {
	Image
	Manifest, Config json.RawMessage
	LayerDetails     []LayerDetail
	Files            int64 // names in the image
	Metadata         string
	Quarantine       string `json:",omitempty"` // why nothing may be started on it
	QuarantineFile   string `json:",omitempty"` // whose bytes are not as promised; explain says
	Profile          ProfileInfo
	// Asked is what containerd calls it, if a snapshotter has asked for it.
	Asked []string `json:",omitempty"`
}

// A Left is an image that was left to containerd, which brings it in by itself.
type Left struct {
	Ref    string
	Digest string `json:",omitempty"` // of the manifest, if containerd named it
	Why    string
	At     time.Time
}

// ExplainArgs names a container or an image. Type "container" or "image" says
// which; "" is a container if there is one of that name.
type ExplainArgs struct{ Name, Type string }

// Explanation tells what is known of an image, and of a container on it.
type Explanation struct {
	Container *Container   `json:",omitempty"`
	Image     *ImageDetail `json:",omitempty"` // nil: it was removed. Without its documents
	Left      *Left        `json:",omitempty"` // not nil: when containerd last asked for the image, it was not brought in
	Running   []string     `json:",omitempty"` // names of the containers that run on it
	Start     *Start       `json:",omitempty"` // the container's last start, or the last on the image
	Pull      *Start       `json:",omitempty"` // its last pull
	Since     time.Time    // when the daemon's worker began to count Misses
	Misses    Misses
}

// Misses are reads that waited for the network.
type Misses struct {
	N, Failed int64
	Bytes     int64         // that readers got
	Waited    time.Duration // all of them together
	P50, P99  time.Duration // half of them, and all but a hundredth, waited no longer
}

// TopArgs asks what the daemon is doing: a Top after every Every (0: 1 s; from
// 100 ms to 1 min), Count of them (0: until the client hangs up).
type TopArgs struct {
	Every time.Duration `json:",omitempty"`
	Count int           `json:",omitempty"`
}

// Top is what the daemon did in the time Over before Time.
type Top struct {
	Time     time.Time
	Over     time.Duration
	Worker   int // pid
	Restarts int
	Memory   int64   // resident bytes of the worker
	Activity         // all images together, and what is none's
	Requests float64 // HTTP requests of registries a second
	Received float64 // and body bytes
	Reads    float64 // FUSE READs a second, also those that did not wait
	Queues   []Queue
	Images   []TopImage // in use or active, the busiest first
}

// Activity is what was waited for and what came, per second.
type Activity struct {
	Misses   float64       // reads that waited for the network and ended
	P50, P99 time.Duration // how long they waited
	Waiting  float64       // how many waited at any time, on average
	Read     float64       // bytes that they got
	Fetched  float64       // stored bytes of layers that came, also in the background
	Failed   int64         // reads that got an error, in all of the time
}

// Queue is what requests of one class are doing.
type Queue struct {
	Class         string // "demand", "ahead", "background", …
	Waiting, Open int    // for their turn; under way
}

// TopImage is an image's part in a Top. What layers do counts for every image that has them.
type TopImage struct {
	Ref, Digest string
	Size, Local int64
	Complete    bool `json:",omitempty"`
	Quarantined bool `json:",omitempty"`
	Activity
	Running []string `json:",omitempty"` // names of containers
	Mounts  int      `json:",omitempty"`
}

// RemoveImagesArgs names images to remove. Force removes those that stopped containers use, too.
type RemoveImagesArgs struct {
	Refs  []string
	Force bool
}

// Removed says what became of one reference.
type Removed struct {
	Ref     string
	Deleted bool // no name is left: its bytes are released
}

// TagArgs gives the image Src the further name Dst.
type TagArgs struct{ Src, Dst string }

// PushArgs names a local image and where to push it; Dst "" is Src's own reference.
type PushArgs struct{ Src, Dst string }

// ConvertArgs asks for a lazily readable copy of Src at Dst, a registry
// reference or oci:DIR[:TAG]. Format is "estargz" or "zstd:chunked".
type ConvertArgs struct {
	Src, Dst, Format, Platform string
	Level                      int // compression level; 0 is the format's default
}

// Pushed is what was made at the destination.
type Pushed struct {
	Ref, Digest string
	Size        int64
}

// IndexArgs asks for the index of an image, which is pulled whole if it is not
// known. With Push it is published as a referrer of the image's manifest.
type IndexArgs struct {
	Ref, Platform string
	Push          bool
}

// IndexListArgs names an image. Keys are files with public keys, to look for
// signatures by these instead of the daemon's.
type IndexListArgs struct {
	Ref  string
	Keys []string
}

// IndexSignArgs names an image and a file with a private key, which only its owner may read.
type IndexSignArgs struct{ Ref, Key string }

// KeygenArgs says where to write a private key; the public one goes to Path.pub.
type KeygenArgs struct{ Path string }

// Key is a key pair in files.
type Key struct{ ID, Private, Public string }

// IndexInfo is an index of an image.
type IndexInfo struct {
	Ref        string
	Manifest   string // digest of the image's manifest
	Digest     string // of the artifact manifest; "" if it is not published
	Created    time.Time
	Root       string // SHA-256 of its header
	Blob       string // digest of the index
	Size       int64  // bytes
	Prefix     int64  // bytes that a node needs before a container can run
	Files      int64
	Blobs      int64  // stored bytes of the layers that it has
	BundleBlob string // digest of the boot bundle; "": none
	Bundle     int64  // bytes of it
	Profile    ProfileInfo
	Layers     []IndexLayer `json:",omitempty"`
	Signer     string       `json:",omitempty"` // ID of the known key that signed it
	Unsigned   string       `json:",omitempty"` // why there is no Signer
	Believed   bool         // by this node's configuration
	Why        string       `json:",omitempty"` // why not
}

// IndexLayer is one layer of an index.
type IndexLayer struct {
	Digest string
	Size   int64
	Format string
	Points int    // where reading can begin
	Why    string `json:",omitempty"` // why the index has nothing of it
}

// ProfileInfo is what is known of an image's starts.
type ProfileInfo struct {
	Starts int   // that were recorded
	Chunks int   // that they read until they were ready
	Bytes  int64 // plain bytes of these
}

// MountArgs asks for what is needed to mount an image.
type MountArgs struct {
	Ref, Platform, Policy string
	Target                string
	Upper, Work           string // both empty: read-only
}

// Rootfs says how to assemble an image's file system: one overlay of Lower
// (directories, highest first), data-only layers Data, and Upper and Work
// where it is writable.
type Rootfs struct {
	Image    string   `json:",omitempty"` // the metadata image, an ID below RUN/images
	Lower    []string `json:",omitempty"`
	Data     []string `json:",omitempty"`
	Upper    string   `json:",omitempty"`
	Work     string   `json:",omitempty"`
	ReadOnly bool     `json:",omitempty"`
	Volatile bool     `json:",omitempty"` // nothing is synced; for what dies with its container
}

// Mount is an image mounted for somebody's own use.
type Mount struct {
	ID, Ref, Target string
	Rootfs          Rootfs
}

// CreateArgs asks for a container. ID is chosen by the client (64 hex digits),
// so that a repeated request is recognised.
type CreateArgs struct {
	ID, Name      string
	Image         string
	Platform      string
	Pull          string // policy: "missing" (default), "always", "never"
	Args          []string
	Entrypoint    []string // nil: the image's; [""]: none
	Env           []string // NAME=VALUE, in order
	Workdir, User string
	Hostname      string
	TTY           bool
	OpenStdin     bool
	Remove        bool // --rm
	Record        bool // let all its reads go by the daemon, for the image's boot profile
	ReadOnly      bool
	Init          bool
	Network       string     // one of the Network constants, or "container:NAME"; "" is NetworkDefault
	Publish       []Port     `json:",omitempty"`
	PublishAll    bool       `json:",omitempty"` // what Expose and the image say
	Expose        []Port     `json:",omitempty"` // Container and Proto only
	Begin         bool       `json:",omitempty"` // it is started at once, so it gets its network now
	IPv4, IPv6    netip.Addr `json:",omitzero"`  // on the bridge; any
	MAC           string     `json:",omitempty"`
	DNS           []string   `json:",omitempty"` // servers, instead of the host's
	DNSSearch     []string   `json:",omitempty"`
	DNSOptions    []string   `json:",omitempty"`
	Hosts         []string   `json:",omitempty"` // NAME:ADDRESS, or NAME:host-gateway
	Mounts        []MountSpec
	Tmpfs         []string // PATH[:options]
	Memory        int64    // bytes; 0 no limit
	NanoCPUs      int64    // billionths of a CPU; 0 no limit
	PidsLimit     int64    // 0 no limit
	CapAdd        []string
	CapDrop       []string
	SecurityOpt   []string
	Ulimits       []Ulimit
	StopSignal    string
	Labels        map[string]string
	Height, Width uint16 // of the terminal
	HostOptions
	Ready         string      // what makes it ready, as monitor.ParseReady reads it; "" leaves that to its health check, or the daemon
	Health        Healthcheck // the fields that are set go before the image's
	NoHealthcheck bool        // the image's is not run
	LogDriver     string      // "json-file" (default) or "none"
	LogMaxSize    int64       // bytes of a log file after which another is begun; 0 no limit
	LogMaxFiles   int         // with LogMaxSize, how many of them are kept; 0 is 1
}

// HostOptions are what a container takes of its machine, and what it shares.
// Zero values are Docker's defaults.
type HostOptions struct {
	Annotations       map[string]string `json:",omitempty"`
	BlkioWeight       uint16            `json:",omitempty"` // 10 to 1000
	CgroupParent      string            `json:",omitempty"` // "": as the daemon is configured
	CDI               []string          `json:",omitempty"` // devices by the names that the administrator's files describe: vendor.com/class=name
	CPUs, MemoryNodes string            `json:",omitempty"` // cpusets: "0-3,5"
	CPUShares         uint64            `json:",omitempty"`
	Devices           []Device          `json:",omitempty"`
	GroupAdd          []string          `json:",omitempty"` // names or numbers; supplementary
	IPC, PID, UTS     string            `json:",omitempty"` // "": its own; "host"; "container:NAME", of IPC and PID
	MemoryReservation int64             `json:",omitempty"` // bytes
	MemorySwap        int64             `json:",omitempty"` // bytes, memory and swap together; -1 no limit, 0 twice the memory
	OOMScoreAdj       int               `json:",omitempty"` // -1000 to 1000
	Privileged        bool              `json:",omitempty"`
	ShmSize           int64             `json:",omitempty"` // bytes of /dev/shm
	StopTimeout       *int              `json:",omitempty"` // seconds; negative: never SIGKILL
	Sysctls           map[string]string `json:",omitempty"`
	UserNS            string            `json:",omitempty"` // "host", or "auto" with options as internal/userns reads them; "": as the daemon is configured
}

// IDRange are users and groups of the host that one container has to itself: Size of each, from UID and from GID on.
type IDRange struct{ UID, GID, Size uint32 }

// Device is one --device. Access is of the letters r, w and m.
type Device struct{ Host, Inside, Access string }

// A Healthcheck is a program that is run in a container again and again, with
// the meaning and the names that Docker gives its parts in an image's config.
// Of each number, 0 is the default.
type Healthcheck struct {
	Test          []string      `json:",omitempty"` // {"CMD", program, argument…}, {"CMD-SHELL", script}, {"NONE"}; none is the image's
	Interval      time.Duration `json:",omitempty"` // from the end of one to the start of the next; 30s
	Timeout       time.Duration `json:",omitempty"` // after which it is killed and has failed; 30s
	StartPeriod   time.Duration `json:",omitempty"` // in which failures do not count, until it has succeeded once; none
	StartInterval time.Duration `json:",omitempty"` // the interval during the start period; 5s
	Retries       int           `json:",omitempty"` // failures in a row that make the container unhealthy; 3
}

// Health is what became of a container's health check so far.
type Health struct {
	Status        string         // "starting", "healthy" or "unhealthy"
	FailingStreak int            // failures since it last succeeded
	Log           []HealthResult `json:",omitempty"` // the newest, oldest first
}

// HealthResult is one run of a health check.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int    // 0 is healthy; -1: it could not be run, or was too slow
	Output     string // its beginning
}

// MountSpec is a -v or --mount. Type is "bind" or "tmpfs".
type MountSpec struct {
	Type, Source, Target string
	ReadOnly             bool
	Options              []string // mount options: propagation, size=, mode=, …
	Create               bool     // -v: make a missing Source a directory
}

// Ulimit is one --ulimit; -1 is unlimited.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// ContainerArgs names a container by ID, unique prefix of it, or name.
type ContainerArgs struct{ ID string }

// Created answers OpCreate and OpStart: the container's monitor is up, waits
// at Socket, and starts the container when it is told to.
type Created struct {
	ID, Name string
	Socket   string
	Warnings []string
}

// Planned answers OpPlan.
type Planned struct {
	Text     string          // one step a line, in their order
	Spec     json.RawMessage // of the runtime specification, as the start would be given it
	Warnings []string        // what Created's would be, and what of the spec has no effect
}

// PoolArgs changes the pool of monitors that are started ahead, until the worker is replaced.
type PoolArgs struct {
	Size  *int `json:",omitempty"` // nil: as it is
	Drain bool `json:",omitempty"` // end those that wait; others come with the next start
}

// Pool is what is kept ready for starts to come.
type Pool struct {
	Size   int        // how many are wanted
	Slots  []PoolSlot // that wait, the next to be used first
	Counts PoolCounts // since the worker began
	Bridge PoolBridge
}

// PoolSlot is a monitor that waits for a container.
type PoolSlot struct {
	Pid    int
	Made   time.Time
	Cgroup string `json:",omitempty"` // of its sandbox
	Why    string `json:",omitempty"` // it has none
}

// PoolCounts say what became of starts and slots.
type PoolCounts struct {
	Made   int64            // slots
	Died   int64            // of these, killed before they were used, or in it
	Hits   int64            // starts that found one
	Misses map[string]int64 // that did not: reason → number
	// Of the hits, Sandboxes are those that took the sandbox, too, and Bare those that did not: reason → number.
	Sandboxes int64
	Bare      map[string]int64
}

// PoolBridge is connections to the bridge that were made ahead.
type PoolBridge struct {
	Size, Ready int
	Made        int64
	Hits        int64
	Misses      map[string]int64 `json:",omitempty"`
}

// PsArgs says which containers to list; by default the running ones.
type PsArgs struct{ All bool }

// Container is one row of the list of containers.
type Container struct {
	ID, Name  string
	Image     string
	Command   []string
	Created   time.Time
	Status    string // "created", "running", "exited", "dead"
	Pid       int
	Started   time.Time
	Finished  time.Time
	ExitCode  int
	OOMKilled bool
	Error     string
	TTY       bool
	Socket    string // of its monitor; "" when it has none
	Labels    map[string]string
	Ready     time.Time `json:",omitzero"`  // when it was, since it was last started
	ReadyBy   string    `json:",omitempty"` // what said so: "line", "port", "file", "health", "quiet" or "exit"
	Health    *Health   `json:",omitempty"` // nil without a health check; its log is in OpCInsp's only
	Network   string    `json:",omitempty"` // its mode: "bridge", "host", "none" or "container:ID"
	Endpoint  *Endpoint `json:",omitempty"` // its connection to the bridge, as long as it runs
	Exposed   []Port    `json:",omitempty"` // ports that are said to be listened at
	IDs       *IDRange  `json:",omitempty"` // of its user namespace; nil: it is in the host's
}

// RemoveContainerArgs names a container to remove; Force kills a running one.
type RemoveContainerArgs struct {
	ID    string
	Force bool
}
