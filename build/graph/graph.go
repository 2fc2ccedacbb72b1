package graph

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/onggi/onggi/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits of what Decode accepts. BuildKit's largest published Dockerfiles stay below a thousandth of them.
const (
	MaxBytes    = 64 << 20
	MaxVertices = 20000
	MaxEdges    = 1000 // inputs of one vertex
)

// Graph is a build's vertices, in an order in which every vertex comes after its inputs, and the result. An empty Output
// is an empty tree (FROM scratch with nothing done).
type Graph struct {
	Vertices []*Vertex `json:"vertices,omitempty"`
	Output   *Edge     `json:"output,omitempty"`
	// Sources are the texts that Locations point into.
	Sources []Text `json:"sources,omitempty"`
}

// Edge is an output of a vertex: an exec has one for each of its writable mounts with Output, all others have output 0.
type Edge struct {
	Vertex digest.Digest `json:"vertex"`
	Output int           `json:"output,omitempty"`
}

// Vertex is one operation. Exactly one of the operations is set.
type Vertex struct {
	// ID names the vertex in this graph. It is not a cache key: it changes with the frontend's version.
	ID       digest.Digest     `json:"id"`
	Inputs   []Edge            `json:"inputs,omitempty"`
	Platform *ocispec.Platform `json:"platform,omitempty"`

	Source *Source `json:"source,omitempty"`
	Exec   *Exec   `json:"exec,omitempty"`
	File   *File   `json:"file,omitempty"`
	Merge  *Merge  `json:"merge,omitempty"`
	Diff   *Diff   `json:"diff,omitempty"`

	// Name is what to show: "[build 2/3] RUN make". It never is a part of the cache key.
	Name string `json:"name,omitempty"`
	// Comment is the instruction as the image's history has it.
	Comment     string     `json:"comment,omitempty"`
	IgnoreCache bool       `json:"ignoreCache,omitempty"`
	Group       string     `json:"group,omitempty"` // vertices of one group are one line of progress
	Locations   []Location `json:"locations,omitempty"`
	// Resources limit an exec; they are not part of its cache key.
	Resources *Resources `json:"resources,omitempty"`
}

// Text is a file that vertices come from.
type Text struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// Location is a range of lines, the first line being 1, in Graph.Sources[Text].
type Location struct {
	Text  int `json:"text"`
	Start int `json:"start"`
	End   int `json:"end"`
}

// Source brings a tree in. Scheme is one of the constants below, Ref what follows "://", Attrs as in LLB
// (solver/pb/attr.go): a solver refuses attributes that it does not know.
type Source struct {
	Scheme string            `json:"scheme"`
	Ref    string            `json:"ref"`
	Attrs  map[string]string `json:"attrs,omitempty"`
}

// The schemes of sources.
const (
	Image     = "docker-image" // Ref: a complete image reference, with a digest when the frontend resolved it
	Local     = "local"        // Ref: the name of a directory that the user gave (context, dockerfile, --build-context)
	Git       = "git"
	HTTP      = "http"
	HTTPS     = "https"
	OCILayout = "oci-layout"
)

// The attributes of sources.
const (
	AttrIncludePatterns = "local.includepattern" // JSON list
	AttrExcludePatterns = "local.excludepatterns"
	AttrFollowPaths     = "local.followpaths"
	AttrSharedKeyHint   = "local.sharedkeyhint"
	AttrLocalSession    = "local.session"
	AttrLocalUnique     = "local.unique"
	AttrLocalDiffer     = "local.differ"

	AttrImageResolveMode = "image.resolvemode" // default, pull, local
	AttrImageRecordType  = "image.recordtype"
	AttrImageChecksum    = "image.checksum"

	AttrHTTPChecksum   = "http.checksum"
	AttrHTTPFilename   = "http.filename"
	AttrHTTPPerm       = "http.perm" // octal
	AttrHTTPUID        = "http.uid"
	AttrHTTPGID        = "http.gid"
	AttrHTTPAuthSecret = "http.authheadersecret"
	AttrHTTPHeader     = "http.header." // followed by the header's name

	AttrGitKeepDir         = "git.keepgitdir"
	AttrGitFullURL         = "git.fullurl"
	AttrGitAuthHeader      = "git.authheadersecret"
	AttrGitAuthToken       = "git.authtokensecret"
	AttrGitKnownSSHHosts   = "git.knownsshhosts"
	AttrGitMountSSHSock    = "git.mountsshsock"
	AttrGitChecksum        = "git.checksum"
	AttrGitSkipSubmodules  = "git.skipsubmodules"
	AttrGitMTime           = "git.mtime"
	AttrGitFetchByCommit   = "git.fetchbycommit"
	AttrGitAdvice          = "git.advice"
	AttrOCILayoutSessionID = "oci.session"
	AttrOCILayoutStoreID   = "oci.store"
)

// Exec runs a command on trees.
type Exec struct {
	Args         []string    `json:"args"`
	Env          []string    `json:"env,omitempty"`
	Cwd          string      `json:"cwd"`
	User         string      `json:"user,omitempty"`
	Hostname     string      `json:"hostname,omitempty"`
	ExtraHosts   []HostIP    `json:"extraHosts,omitempty"`
	Ulimits      []Ulimit    `json:"ulimits,omitempty"`
	CgroupParent string      `json:"cgroupParent,omitempty"`
	Proxy        *Proxy      `json:"proxy,omitempty"`
	Mounts       []Mount     `json:"mounts"` // the one with Dest "/" is the root
	Network      string      `json:"network"`
	Insecure     bool        `json:"insecure,omitempty"` // RUN --security=insecure
	SecretEnv    []SecretEnv `json:"secretEnv,omitempty"`
	Devices      []Device    `json:"devices,omitempty"`
	// ValidExitCodes are the codes that count as success; empty means 0.
	ValidExitCodes []int `json:"validExitCodes,omitempty"`
	// RemoveMountStubs says that empty files and directories made to mount on are removed after the command, with their
	// parents that were made for them.
	RemoveMountStubs bool `json:"removeMountStubs,omitempty"`
}

// The networks of an exec.
const (
	NetworkSandbox = "sandbox"
	NetworkHost    = "host"
	NetworkNone    = "none"
)

// HostIP is a line of /etc/hosts.
type HostIP struct {
	Host string `json:"host"`
	IP   string `json:"ip"`
}

// Ulimit is a resource limit, as docker's --ulimit.
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// Resources limit an exec. Zero is no limit. Memory in bytes, CPU times in microseconds.
type Resources struct {
	Memory     int64  `json:"memory,omitempty"`
	MemorySwap int64  `json:"memorySwap,omitempty"`
	CPUShares  uint64 `json:"cpuShares,omitempty"`
	CPUPeriod  uint64 `json:"cpuPeriod,omitempty"`
	CPUQuota   int64  `json:"cpuQuota,omitempty"`
	CpusetCpus string `json:"cpusetCpus,omitempty"`
	CpusetMems string `json:"cpusetMems,omitempty"`
}

// Proxy are the predefined proxy arguments: in the command's environment, but not in the cache key or in the image.
type Proxy struct {
	HTTP  string `json:"http,omitempty"`
	HTTPS string `json:"https,omitempty"`
	FTP   string `json:"ftp,omitempty"`
	No    string `json:"no,omitempty"`
	All   string `json:"all,omitempty"`
}

// SecretEnv gives a secret as an environment variable.
type SecretEnv struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Optional bool   `json:"optional,omitempty"`
}

// Device is a CDI device (RUN --device).
type Device struct {
	Name     string `json:"name"`
	Optional bool   `json:"optional,omitempty"`
}

// Mount is a tree in an exec. Input is an index into the vertex's inputs, or -1 for an empty tree. Output is the index of
// the vertex's output that the written tree becomes, or -1.
type Mount struct {
	Type     string  `json:"type"`
	Input    int     `json:"input"`
	Selector string  `json:"selector,omitempty"` // path in the input
	Dest     string  `json:"dest"`
	Output   int     `json:"output"`
	Readonly bool    `json:"readonly,omitempty"`
	Size     int64   `json:"size,omitempty"` // bytes, of a tmpfs
	Cache    *Cache  `json:"cache,omitempty"`
	Secret   *Secret `json:"secret,omitempty"` // of MountSecret and MountSSH
	// ContentCache says whether the key is by content: "" as the solver likes, "on", "off".
	ContentCache string `json:"contentCache,omitempty"`
}

// The types of mounts.
const (
	MountBind   = "bind"
	MountCache  = "cache"
	MountTmpfs  = "tmpfs"
	MountSecret = "secret"
	MountSSH    = "ssh"
)

// Cache is a cache mount's directory: shared by all builds of the store that name the same id.
type Cache struct {
	ID      string `json:"id"`
	Sharing string `json:"sharing"`
}

// The ways to share a cache mount.
const (
	Shared  = "shared"  // by several writers at once
	Private = "private" // a second writer gets a new directory
	Locked  = "locked"  // a second writer waits
)

// Secret is a secret's file or an agent's socket.
type Secret struct {
	ID       string `json:"id"`
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
	Mode     uint32 `json:"mode"`
	Optional bool   `json:"optional,omitempty"`
}

// File changes trees without running anything. Each action works on the result of another: an index below the number of
// inputs is an input, one above it the action of that index minus the number of inputs, -1 an empty tree.
type File struct {
	Actions []Action `json:"actions"`
}

// Action is one change. Exactly one of its pointers is set.
type Action struct {
	Input     int `json:"input"`
	Secondary int `json:"secondary"` // where Copy reads from; -1 otherwise
	Output    int `json:"output"`    // output of the vertex, or -1

	Copy    *Copy    `json:"copy,omitempty"`
	Mkfile  *Mkfile  `json:"mkfile,omitempty"`
	Mkdir   *Mkdir   `json:"mkdir,omitempty"`
	Symlink *Symlink `json:"symlink,omitempty"`
	Rm      *Rm      `json:"rm,omitempty"`
}

// Copy copies from the secondary tree.
type Copy struct {
	Src            string   `json:"src"`
	Dest           string   `json:"dest"`
	Owner          *Owner   `json:"owner,omitempty"`
	Mode           int      `json:"mode"`              // -1 as the source's
	ModeStr        string   `json:"modeStr,omitempty"` // symbolic: "u=rwX,go=rX"
	FollowSymlink  bool     `json:"followSymlink,omitempty"`
	DirContents    bool     `json:"dirContents,omitempty"` // of a directory, copy what is in it
	Unpack         bool     `json:"unpack,omitempty"`      // a local archive is unpacked (ADD)
	CreateDestPath bool     `json:"createDestPath,omitempty"`
	Wildcard       bool     `json:"wildcard,omitempty"`
	EmptyWildcard  bool     `json:"emptyWildcard,omitempty"` // no match is no error
	Timestamp      int64    `json:"timestamp"`               // nanoseconds since 1970; -1 as the source's
	Include        []string `json:"include,omitempty"`
	Exclude        []string `json:"exclude,omitempty"`
	Required       []string `json:"required,omitempty"` // must be among what Include finds
	AlwaysReplace  bool     `json:"alwaysReplace,omitempty"`
}

// Mkfile makes a file.
type Mkfile struct {
	Path      string `json:"path"`
	Mode      int    `json:"mode"`
	Data      []byte `json:"data,omitempty"`
	Owner     *Owner `json:"owner,omitempty"`
	Timestamp int64  `json:"timestamp"`
}

// Mkdir makes a directory.
type Mkdir struct {
	Path      string `json:"path"`
	Mode      int    `json:"mode"`
	Parents   bool   `json:"parents,omitempty"`
	Owner     *Owner `json:"owner,omitempty"`
	Timestamp int64  `json:"timestamp"`
}

// Symlink makes a symbolic link.
type Symlink struct {
	Target    string `json:"target"`
	Path      string `json:"path"`
	Owner     *Owner `json:"owner,omitempty"`
	Timestamp int64  `json:"timestamp"`
}

// Rm removes files.
type Rm struct {
	Path          string `json:"path"`
	AllowNotFound bool   `json:"allowNotFound,omitempty"`
	Wildcard      bool   `json:"wildcard,omitempty"`
}

// Owner is a user and a group, each by number or by a name that is looked up in the tree of Input (see File).
type Owner struct {
	User  *Principal `json:"user,omitempty"`
	Group *Principal `json:"group,omitempty"`
}

// Principal is a user or a group: by name if Name is not empty.
type Principal struct {
	Name  string `json:"name,omitempty"`
	Input int    `json:"input"`
	ID    uint32 `json:"id"`
}

// Merge stacks trees: later ones over earlier ones. Its vertex's inputs are the trees, in order.
type Merge struct{}

// Diff is what the upper tree changes in the lower one. Indexes into the inputs, -1 an empty tree.
type Diff struct {
	Lower int `json:"lower"`
	Upper int `json:"upper"`
}

// Decode reads a graph and checks it. The error's kind is Invalid.
func Decode(r io.Reader) (*Graph, error) {
	g := &Graph{}
	// One byte more than allowed: the decoder stops in the middle of a longer text.
	lr := &io.LimitedReader{R: r, N: MaxBytes + 1}
	d := json.NewDecoder(lr)
	d.DisallowUnknownFields()
	if err := d.Decode(g); err != nil {
		if lr.N <= 0 {
			err = fmt.Errorf("it is longer than %d MiB", MaxBytes>>20)
		}
		return nil, bad(err)
	}
	return g, g.Check()
}

func bad(err error) error {
	return &errdefs.Error{
		Op: "read", What: "the build graph", Kind: errdefs.InvalidArgument, Err: err,
		Fix: "use the onggi-build that came with this onggi",
	}
}

// Check says whether the graph is whole: inputs come before their users (so there is no cycle), indexes are in range, and
// each vertex has one operation.
func (g *Graph) Check() error {
	if len(g.Vertices) > MaxVertices {
		return bad(fmt.Errorf("it has %d vertices; %d are allowed", len(g.Vertices), MaxVertices))
	}
	seen := make(map[digest.Digest]*Vertex, len(g.Vertices))
	for i, v := range g.Vertices {
		if v == nil {
			return bad(fmt.Errorf("vertex %d is empty", i))
		}
		if err := v.check(seen, len(g.Sources)); err != nil {
			return bad(fmt.Errorf("vertex %d (%s): %w", i, v.Name, err))
		}
		seen[v.ID] = v
	}
	if g.Output != nil {
		if err := edge(*g.Output, seen); err != nil {
			return bad(fmt.Errorf("the output: %w", err))
		}
	}
	return nil
}

func edge(e Edge, seen map[digest.Digest]*Vertex) error {
	v := seen[e.Vertex]
	if v == nil {
		return fmt.Errorf("its input %s does not come before it", e.Vertex)
	}
	if e.Output < 0 || e.Output >= v.Outputs() {
		return fmt.Errorf("its input %q has no output %d", v.Name, e.Output)
	}
	return nil
}

// Outputs is the number of trees that the vertex makes.
func (v *Vertex) Outputs() int {
	n := 0
	switch {
	case v.Exec != nil:
		for _, m := range v.Exec.Mounts {
			n = max(n, m.Output+1)
		}
	case v.File != nil:
		for _, a := range v.File.Actions {
			n = max(n, a.Output+1)
		}
	default:
		return 1
	}
	return n
}

func (v *Vertex) check(seen map[digest.Digest]*Vertex, texts int) error {
	if err := v.ID.Validate(); err != nil {
		return fmt.Errorf("its id: %w", err)
	}
	if seen[v.ID] != nil {
		return errors.New("it is there twice")
	}
	if len(v.Inputs) > MaxEdges {
		return fmt.Errorf("it has %d inputs; %d are allowed", len(v.Inputs), MaxEdges)
	}
	for _, e := range v.Inputs {
		if err := edge(e, seen); err != nil {
			return err
		}
	}
	for _, l := range v.Locations {
		if l.Text < 0 || l.Text >= texts || l.Start < 0 || l.End < l.Start {
			return errors.New("a location is outside of the sources")
		}
	}
	n := 0
	for _, set := range []bool{v.Source != nil, v.Exec != nil, v.File != nil, v.Merge != nil, v.Diff != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("it has %d operations instead of one", n)
	}
	input := func(i int) error {
		if i < -1 || i >= len(v.Inputs) {
			return fmt.Errorf("there is no input %d", i)
		}
		return nil
	}
	switch {
	case v.Source != nil:
		if len(v.Inputs) > 0 {
			return errors.New("a source has no inputs")
		}
		return v.Source.check()
	case v.Exec != nil:
		return v.Exec.check(input)
	case v.File != nil:
		return v.File.check(len(v.Inputs))
	case v.Diff != nil:
		return errors.Join(input(v.Diff.Lower), input(v.Diff.Upper))
	}
	return nil
}

func (s *Source) check() error {
	switch s.Scheme {
	case Image, Local, Git, HTTP, HTTPS, OCILayout:
	default:
		return fmt.Errorf("unknown source %q", s.Scheme)
	}
	if s.Ref == "" {
		return errors.New("the source has no name")
	}
	return nil
}

func (x *Exec) check(input func(int) error) error {
	if len(x.Args) == 0 {
		return errors.New("there is no command")
	}
	if !strings.HasPrefix(x.Cwd, "/") {
		return fmt.Errorf("the working directory %q is not absolute", x.Cwd)
	}
	switch x.Network {
	case NetworkSandbox, NetworkHost, NetworkNone:
	default:
		return fmt.Errorf("unknown network %q", x.Network)
	}
	roots, outputs := 0, map[int]bool{}
	for _, m := range x.Mounts {
		if err := input(m.Input); err != nil {
			return err
		}
		if m.Output < -1 || m.Output > len(x.Mounts) || m.Output >= 0 && outputs[m.Output] {
			return fmt.Errorf("output %d of the mount on %s", m.Output, m.Dest)
		}
		outputs[m.Output] = true
		if m.Dest == "/" {
			roots++
		}
		switch m.Type {
		case MountBind, MountTmpfs:
		case MountCache:
			if m.Cache == nil || m.Cache.Sharing != Shared && m.Cache.Sharing != Private && m.Cache.Sharing != Locked {
				return fmt.Errorf("the cache mount on %s has no id or no way of sharing", m.Dest)
			}
		case MountSecret, MountSSH:
			if m.Secret == nil {
				return fmt.Errorf("the mount on %s has no id", m.Dest)
			}
		default:
			return fmt.Errorf("unknown mount %q", m.Type)
		}
	}
	if roots != 1 {
		return fmt.Errorf("it has %d roots", roots)
	}
	return nil
}

func (f *File) check(inputs int) error {
	outputs := map[int]bool{}
	for i, a := range f.Actions {
		in := func(n int) error {
			if n < -1 || n >= inputs+i {
				return fmt.Errorf("action %d has no input %d", i, n)
			}
			return nil
		}
		if err := errors.Join(in(a.Input), in(a.Secondary)); err != nil {
			return err
		}
		if a.Output < -1 || a.Output >= len(f.Actions) || a.Output >= 0 && outputs[a.Output] {
			return fmt.Errorf("output %d of action %d", a.Output, i)
		}
		outputs[a.Output] = true
		n := 0
		var owner *Owner
		if a.Copy != nil {
			n, owner = n+1, a.Copy.Owner
		}
		if a.Mkfile != nil {
			n, owner = n+1, a.Mkfile.Owner
		}
		if a.Mkdir != nil {
			n, owner = n+1, a.Mkdir.Owner
		}
		if a.Symlink != nil {
			n, owner = n+1, a.Symlink.Owner
		}
		if a.Rm != nil {
			n++
		}
		if n != 1 {
			return fmt.Errorf("action %d is %d actions", i, n)
		}
		if owner == nil {
			continue
		}
		for _, p := range []*Principal{owner.User, owner.Group} {
			if p != nil && p.Name != "" && in(p.Input) != nil {
				return fmt.Errorf("the owner of action %d: %w", i, in(p.Input))
			}
		}
	}
	if len(f.Actions) == 0 {
		return errors.New("it has no actions")
	}
	return nil
}
