package dockerfile

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// shelf answers from directories and a table of images.
type shelf struct {
	t      *testing.T
	dirs   map[string]string // by the local source's name
	images map[string]string // configurations by reference

	mu       sync.Mutex
	warnings []frontend.Warning
	asked    []string
}

func (s *shelf) Resolve(_ context.Context, q frontend.ImageQuery) (*frontend.ImageInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, q.Ref)
	c, ok := s.images[q.Ref]
	if !ok {
		return nil, &errdefs.Error{Op: "resolve", What: q.Ref, Kind: errdefs.NotFound, Why: "there is no such image", Fix: "check the spelling"}
	}
	d := digest.FromString(c)
	return &frontend.ImageInfo{Ref: q.Ref + "@" + d.String(), Digest: d, Config: []byte(c)}, nil
}

func (s *shelf) Metadata(context.Context, *graph.Source) (*frontend.SourceInfo, error) {
	return &frontend.SourceInfo{}, nil
}

func (s *shelf) ReadFile(_ context.Context, g *graph.Graph, name string, offset int64, length int) ([]byte, error) {
	if len(g.Vertices) != 1 || g.Vertices[0].Source == nil || g.Vertices[0].Source.Scheme != graph.Local {
		s.t.Errorf("read %s of a graph that is no local source: %+v", name, g)
	}
	b, err := os.ReadFile(filepath.Join(s.dirs[g.Vertices[0].Source.Ref], path.Clean("/"+name)))
	if err != nil {
		return nil, err
	}
	b = b[min(offset, int64(len(b))):]
	return b[:min(len(b), length)], nil
}

func (s *shelf) Stat(_ context.Context, g *graph.Graph, name string) (*frontend.Stat, error) {
	fi, err := os.Lstat(filepath.Join(s.dirs[g.Vertices[0].Source.Ref], path.Clean("/"+name)))
	if err != nil {
		return nil, err
	}
	return &frontend.Stat{Path: name, Mode: uint32(fi.Mode()), Size: fi.Size()}, nil
}

func (s *shelf) ReadDir(context.Context, *graph.Graph, string, string) ([]frontend.Stat, error) {
	return nil, nil
}

func (s *shelf) Evaluate(context.Context, *graph.Graph) error { return nil }

func (s *shelf) Warn(w frontend.Warning) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings = append(s.warnings, w)
}

const base = `{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/bin","BASE=1"],"WorkingDir":"/base"},"rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}`

func build(t *testing.T, text string, options map[string]string, files map[string]string) (*frontend.Result, *shelf, error) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &shelf{t: t, dirs: map[string]string{"context": dir, "dockerfile": dir}, images: map[string]string{"docker.io/library/base:latest": base}}
	req := frontend.Request{Options: options, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	res, err := Build(context.Background(), req, s)
	return res, s, err
}

func TestGraph(t *testing.T) {
	res, _, err := build(t, `ARG FROM=base
FROM ${FROM} AS compile
ARG CFLAGS=-O1
WORKDIR /src
COPY --chown=nobody:1 --chmod=u=rwX,go= *.c ./
RUN --mount=type=cache,target=/root/.cache,sharing=locked --mount=type=secret,id=key,env=KEY \
    --mount=type=tmpfs,target=/tmp,size=1m --network=none cc $CFLAGS -o out *.c
FROM base
COPY --from=compile --link /src/out /bin/out
COPY <<EOT /etc/motd
hello
EOT
ENTRYPOINT ["/bin/out"]
`, map[string]string{"build-arg:CFLAGS": "-O2", "label:a": "b"}, map[string]string{"x.c": "", ".dockerignore": "secret*\n"})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Platforms) != 1 || res.Index || res.Platforms[0].ID != "linux/amd64" {
		t.Fatalf("platforms: %+v, index %v", res.Platforms, res.Index)
	}
	p := res.Platforms[0]
	kinds := map[string]int{}
	var x *graph.Exec
	for _, v := range p.Graph.Vertices {
		switch {
		case v.Exec != nil:
			kinds["exec"]++
			x = v.Exec
			if !strings.Contains(v.Name, "RUN --mount") || len(v.Locations) == 0 || v.Locations[0].Start != 6 || v.Locations[0].End != 7 {
				t.Errorf("the exec is named %q and is at %+v", v.Name, v.Locations)
			}
		case v.Merge != nil:
			kinds["merge"]++
		case v.File != nil:
			kinds["file"]++
			for _, a := range v.File.Actions {
				if a.Copy != nil && a.Copy.Wildcard && a.Copy.Src == "/*.c" {
					if a.Copy.ModeStr != "u=rwX,go=" || a.Copy.Owner == nil || a.Copy.Owner.User.Name != "nobody" || a.Copy.Owner.Group.ID != 1 {
						t.Errorf("the copy: %+v, owner %+v", a.Copy, a.Copy.Owner)
					}
				}
			}
		case v.Source != nil:
			kinds[v.Source.Scheme]++
			if v.Source.Scheme == graph.Local && !strings.Contains(v.Source.Attrs[graph.AttrExcludePatterns], "secret*") {
				t.Errorf("the context does not leave out what .dockerignore says: %v", v.Source.Attrs)
			}
		}
	}
	if kinds["exec"] != 1 || kinds["merge"] < 1 || kinds[graph.Local] != 1 || kinds[graph.Image] != 1 {
		t.Errorf("operations: %v", kinds)
	}
	if x == nil {
		t.FailNow()
	}
	if x.Network != graph.NetworkNone || x.Cwd != "/src" || !slices.Contains(x.Env, "CFLAGS=-O2") || !slices.Contains(x.Env, "BASE=1") {
		t.Errorf("the exec: %+v", x)
	}
	if len(x.SecretEnv) != 1 || x.SecretEnv[0].Name != "KEY" {
		t.Errorf("secrets: %+v", x.SecretEnv)
	}
	var cache, tmpfs bool
	for _, m := range x.Mounts {
		cache = cache || m.Type == graph.MountCache && m.Cache.Sharing == graph.Locked && m.Dest == "/root/.cache"
		tmpfs = tmpfs || m.Type == graph.MountTmpfs && m.Size == 1<<20
	}
	if !cache || !tmpfs {
		t.Errorf("mounts: %+v", x.Mounts)
	}
	var img ocispec.Image
	if err := json.Unmarshal(p.Image, &img); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(img.Config.Entrypoint, []string{"/bin/out"}) || img.Config.Labels["a"] != "b" {
		t.Errorf("the image: %+v", img.Config)
	}
	b, err := json.Marshal(p.Graph)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := graph.Decode(strings.NewReader(string(b))); err != nil || !reflect.DeepEqual(back, &p.Graph) {
		t.Errorf("a graph does not survive its JSON: %v", err)
	}
}

func TestPlatformsTargetsAndContexts(t *testing.T) {
	res, s, err := build(t, "FROM --platform=$BUILDPLATFORM base AS a\nRUN echo $TARGETARCH\nFROM a AS b\nRUN echo b\nFROM a AS c\nCOPY --from=other x /\n",
		map[string]string{"platform": "linux/amd64,linux/arm64", "target": "c", "multi-platform": "true", "context:other": "local:other"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !res.Index || len(res.Platforms) != 2 {
		t.Fatalf("index %v, %d platforms", res.Index, len(res.Platforms))
	}
	for _, p := range res.Platforms {
		for _, v := range p.Graph.Vertices {
			if v.Exec != nil && slices.Contains(v.Exec.Args, "echo b") {
				t.Errorf("%s builds a stage that nobody wants", p.ID)
			}
		}
	}
	if !slices.Contains(s.asked, "docker.io/library/base:latest") {
		t.Errorf("asked for %v", s.asked)
	}
}

func TestErrorsPointIntoTheText(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		options map[string]string
		want    string
		line    int
		kind    errdefs.Kind
	}{
		"unknown instruction": {"FROM base\nRUM echo\n", nil, "unknown instruction", 2, errdefs.InvalidArgument},
		"unknown flag":        {"FROM base\nCOPY --form=x a b\n", nil, "--form", 2, errdefs.InvalidArgument},
		"unknown image":       {"FROM nobody/has-this\n", nil, "there is no such image", 1, errdefs.NotFound},
		"unknown stage":       {"FROM base\n", map[string]string{"target": "x"}, "target stage", 0, errdefs.InvalidArgument},
		"no FROM":             {"RUN echo\n", nil, "no build stage", 1, errdefs.InvalidArgument},
		"empty":               {"", nil, "empty", 0, errdefs.InvalidArgument},
		"cycle":               {"FROM b AS a\nFROM a AS b\n", nil, "", 0, errdefs.NotFound},
		"foreign syntax":      {"# syntax=example.com/frontend:1\nFROM base\n", nil, "only BuildKit's own", 1, errdefs.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := build(t, c.text, c.options, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || errdefs.KindOf(err) != c.kind {
				t.Fatalf("got %v (%v), want %q (%v)", err, errdefs.KindOf(err), c.want, c.kind)
			}
			var f *frontend.Failure
			if c.line > 0 && (!errors.As(err, &f) || f.Source == nil || len(f.Ranges) == 0 || f.Ranges[0].Start != c.line) {
				t.Errorf("it points to %+v, want line %d", f, c.line)
			}
		})
	}
}

func TestBuiltInSyntaxLintAndOutline(t *testing.T) {
	res, _, err := build(t, "# syntax=docker/dockerfile:1.7-labs\nFROM base\nRUN echo\n", nil, nil)
	if err != nil || len(res.Platforms) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	res, _, err = build(t, "from base as Stage\nRUN echo\nMAINTAINER me\n", map[string]string{"requestid": "frontend.lint"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if txt := string(res.Meta["result.txt"]); !strings.Contains(txt, "StageNameCasing") || !strings.Contains(txt, "MaintainerDeprecated") {
		t.Errorf("lint: %s", txt)
	}
	_, s, err := build(t, "FROM base\nMAINTAINER me\n", nil, nil)
	if err != nil || len(s.warnings) != 1 || !strings.Contains(s.warnings[0].Text, "MaintainerDeprecated") || s.warnings[0].Ranges[0].Start != 2 {
		t.Errorf("warnings: %+v, %v", s.warnings, err)
	}
	res, _, err = build(t, "FROM base AS one\nFROM one AS two\n", map[string]string{"requestid": "frontend.targets"}, nil)
	if err != nil || !strings.Contains(string(res.Meta["result.json"]), `"two"`) {
		t.Errorf("targets: %s, %v", res.Meta["result.json"], err)
	}
}

// TestEveryFieldOfLLB holds the conversion to what BuildKit's operations have: a field that a new version brings fails
// here until convert.go knows it. What is left out on purpose says why.
func TestEveryFieldOfLLB(t *testing.T) {
	known := map[reflect.Type]string{
		reflect.TypeFor[pb.Op]():                "Inputs Op Platform Constraints",
		reflect.TypeFor[pb.ExecOp]():            "Meta Mounts Network Security Secretenv CdiDevices",
		reflect.TypeFor[pb.Meta]():              "Args Env Cwd User ProxyEnv ExtraHosts Hostname Ulimit CgroupParent RemoveMountStubsRecursive ValidExitCodes",
		reflect.TypeFor[pb.Mount]():             "Input Selector Dest Output Readonly MountType TmpfsOpt CacheOpt SecretOpt SSHOpt ResultID ContentCache",
		reflect.TypeFor[pb.TmpfsOpt]():          "Size",
		reflect.TypeFor[pb.CacheOpt]():          "ID Sharing",
		reflect.TypeFor[pb.SecretOpt]():         "ID Uid Gid Mode Optional",
		reflect.TypeFor[pb.SSHOpt]():            "ID Uid Gid Mode Optional",
		reflect.TypeFor[pb.SourceOp]():          "Identifier Attrs",
		reflect.TypeFor[pb.FileOp]():            "Actions",
		reflect.TypeFor[pb.FileAction]():        "Input SecondaryInput Output Action",
		reflect.TypeFor[pb.FileActionCopy]():    "Src Dest Owner Mode FollowSymlink DirCopyContents AttemptUnpackDockerCompatibility CreateDestPath AllowWildcard AllowEmptyWildcard Timestamp IncludePatterns ExcludePatterns AlwaysReplaceExistingDestPaths ModeStr RequiredPaths",
		reflect.TypeFor[pb.FileActionMkFile]():  "Path Mode Data Owner Timestamp",
		reflect.TypeFor[pb.FileActionMkDir]():   "Path Mode MakeParents Owner Timestamp",
		reflect.TypeFor[pb.FileActionSymlink](): "Oldpath Newpath Owner Timestamp",
		reflect.TypeFor[pb.FileActionRm]():      "Path AllowNotFound AllowWildcard",
		reflect.TypeFor[pb.ChownOpt]():          "User Group",
		reflect.TypeFor[pb.MergeOp]():           "Inputs",
		reflect.TypeFor[pb.DiffOp]():            "Lower Upper",
		// ExportCache: our cache keeps every result. Caps: what LLB needs of a daemon.
		reflect.TypeFor[pb.OpMetadata]():     "IgnoreCache Description ExportCache Caps ProgressGroup LinuxResources",
		reflect.TypeFor[pb.LinuxResources](): "Memory MemorySwap CpuShares CpuPeriod CpuQuota CpusetCpus CpusetMems",
		reflect.TypeFor[pb.ProxyEnv]():       "HttpProxy HttpsProxy FtpProxy NoProxy AllProxy",
	}
	for typ, names := range known {
		var got []string
		for f := range typ.Fields() {
			if f.IsExported() {
				got = append(got, f.Name)
			}
		}
		want := strings.Fields(names)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%v has the fields %v, the conversion knows %v", typ, got, want)
		}
	}
}

func FuzzConvert(f *testing.F) {
	op := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://context"}}}
	b, _ := op.MarshalVT()
	end := &pb.Op{Inputs: []*pb.Input{{Digest: digest.FromBytes(b).String()}}}
	e, _ := end.MarshalVT()
	f.Add(b, e)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		g, err := convert(&pb.Definition{Def: [][]byte{a, b}})
		if err == nil && g.Check() != nil {
			t.Errorf("the graph does not hold: %v", g.Check())
		}
	})
}
