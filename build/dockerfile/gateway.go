package dockerfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commonexptypes "github.com/moby/buildkit/exporter/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	berrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	fstypes "github.com/tonistiigi/fsutil/types"
)

// Build makes the graph of a Dockerfile. An error that points into the text is a *frontend.Failure.
func Build(ctx context.Context, req frontend.Request, b frontend.Backend) (*frontend.Result, error) {
	g := &gateway{backend: b, req: req}
	res, err := builder.Build(ctx, g)
	if err != nil {
		return nil, locate(err)
	}
	return result(res, req)
}

// locate turns BuildKit's errors, which carry the text and the lines, into ours.
func locate(err error) error {
	var f *frontend.Failure
	if errors.As(err, &f) && f.Source != nil {
		return f
	}
	e := &errdefs.Error{Op: "read", What: "the Dockerfile", Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
	if e.Kind == errdefs.Unknown || e.Kind == errdefs.Internal {
		e.Kind = errdefs.InvalidArgument
	}
	out := &frontend.Failure{Err: e}
	for _, s := range berrdefs.Sources(err) {
		if s.Info == nil {
			continue
		}
		out.Source = &graph.Text{Name: s.Info.Filename, Data: s.Info.Data}
		out.Ranges = ranges(s.Ranges, 0)
	}
	return out
}

func result(res *client.Result, req frontend.Request) (*frontend.Result, error) {
	out := &frontend.Result{Meta: map[string][]byte{}}
	for _, k := range []string{"result.json", "result.txt", "result.statuscode", "version"} {
		if v, ok := res.Metadata[k]; ok {
			out.Meta[k] = v
		}
	}
	if req.Options["requestid"] != "" {
		return out, nil
	}
	if len(res.Attestations) > 0 {
		return nil, errors.New("an attestation by the frontend is not known here")
	}
	var ps exptypes.Platforms
	if err := json.Unmarshal(res.Metadata[exptypes.ExporterPlatformsKey], &ps); err != nil {
		return nil, fmt.Errorf("the platforms of the result: %w", err)
	}
	out.Index = res.Ref == nil && len(res.Refs) > 0
	for _, p := range ps.Platforms {
		ref, suffix := res.Ref, ""
		if out.Index {
			ref, suffix = res.Refs[p.ID], "/"+p.ID
		}
		one := frontend.Platform{
			ID: p.ID, Platform: p.Platform,
			Image: res.Metadata[exptypes.ExporterImageConfigKey+suffix], BaseImage: res.Metadata[exptypes.ExporterImageBaseConfigKey+suffix],
		}
		if r, ok := ref.(*reference); ok && r != nil {
			one.Graph = *r.graph
		}
		if e, ok := res.Metadata[commonexptypes.ExporterEpochKey+suffix]; ok {
			n, err := strconv.ParseInt(string(e), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("SOURCE_DATE_EPOCH of the result: %w", err)
			}
			one.Epoch = &n
		}
		out.Platforms = append(out.Platforms, one)
	}
	return out, nil
}

// gateway is what BuildKit's frontend takes for a daemon.
type gateway struct {
	backend frontend.Backend
	req     frontend.Request
	extra   map[string]string // options of a frontend that was called by # syntax=
}

var _ client.Client = (*gateway)(nil)

func (g *gateway) BuildOpts() client.BuildOpts {
	opts := maps.Clone(g.req.Options)
	if opts == nil {
		opts = map[string]string{}
	}
	maps.Copy(opts, g.extra)
	return client.BuildOpts{
		Opts: opts, SessionID: "onggi", Product: "onggi",
		Workers: []client.WorkerInfo{{ID: "onggi", Platforms: []ocispec.Platform{g.req.Platform}}},
		LLBCaps: pb.Caps.CapSet(pb.Caps.All()), Caps: gwpb.Caps.CapSet(gatewayCaps()),
	}
}

// gatewayCaps are those of the gateway that this one has; not among them: inputs, containers, attestations, inline cache
// import through the gateway.
func gatewayCaps() (list []*apicaps.PBCap) {
	missing := map[apicaps.CapID]bool{
		gwpb.CapFrontendInputs: true, gwpb.CapGatewayExec: true, gwpb.CapGatewayExecExtraHosts: true, gwpb.CapGatewayExecSecretEnv: true,
		gwpb.CapGatewayExecSignals: true, gwpb.CapGatewayExecFilesystem: true, gwpb.CapAttestations: true,
	}
	for _, c := range gwpb.Caps.All() {
		if !missing[apicaps.CapID(c.ID)] {
			list = append(list, c)
		}
	}
	return list
}

// builtin are the names that "# syntax=" may give this frontend.
var builtin = []string{"docker/dockerfile", "docker.io/docker/dockerfile", "docker/dockerfile-upstream", "docker.io/docker/dockerfile-upstream"}

func (g *gateway) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	if req.Frontend != "" {
		name, _, _ := strings.Cut(req.FrontendOpt["source"], "@")
		if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
			name = name[:i]
		}
		for _, b := range builtin {
			if name == b {
				inner := *g
				inner.extra = maps.Clone(req.FrontendOpt)
				return builder.Build(ctx, &inner)
			}
		}
		return nil, &errdefs.Error{
			Op: "use", What: "# syntax=" + req.FrontendOpt["source"], Kind: errdefs.Unsupported,
			Why: "only BuildKit's own Dockerfile frontend, docker/dockerfile, is built in; others are programs from a registry and are not run",
			Fix: "remove the line, or name docker/dockerfile:1",
		}
	}
	gr, err := convert(req.Definition)
	if err != nil {
		return nil, err
	}
	r := &reference{g: g, graph: gr, def: req.Definition}
	if req.Evaluate {
		if err := r.Evaluate(ctx); err != nil {
			return nil, err
		}
	}
	res := client.NewResult()
	res.SetRef(r)
	return res, nil
}

func (g *gateway) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return sourceresolver.NewImageMetaResolver(g).ResolveImageConfig(ctx, ref, opt)
}

func (g *gateway) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	s, err := source(op)
	if err != nil {
		return nil, err
	}
	switch s.Scheme {
	case graph.Image, graph.OCILayout:
		q := frontend.ImageQuery{Ref: s.Ref, Name: opt.LogName}
		if o := opt.ImageOpt; o != nil {
			q.Platform, q.Mode, q.NoConfig = o.Platform, o.ResolveMode, o.NoConfig
			if o.AttestationChain || len(o.ResolveAttestations) > 0 {
				return nil, errors.New("attestations of base images are not resolved here")
			}
		}
		if o := opt.OCILayoutOpt; o != nil {
			q.Platform, q.Store = o.Platform, o.Store.StoreID
		}
		info, err := g.backend.Resolve(ctx, q)
		if err != nil {
			return nil, err
		}
		return &sourceresolver.MetaResponse{
			Op:    &pb.SourceOp{Identifier: s.Scheme + "://" + info.Ref, Attrs: op.Attrs},
			Image: &sourceresolver.ResolveImageResponse{Digest: info.Digest, Config: info.Config},
		}, nil
	case graph.Git, graph.HTTP, graph.HTTPS:
		info, err := g.backend.Metadata(ctx, s)
		if err != nil {
			return nil, err
		}
		m := &sourceresolver.MetaResponse{Op: op}
		if s.Scheme == graph.Git {
			m.Git = &sourceresolver.ResolveGitResponse{
				Checksum: info.Checksum, Ref: info.Ref, CommitChecksum: info.CommitChecksum, CommitObject: info.CommitObject, TagObject: info.TagObject,
			}
		} else {
			m.HTTP = &sourceresolver.ResolveHTTPResponse{Digest: info.Digest, Filename: info.Filename, LastModified: info.LastModified}
		}
		return m, nil
	}
	return &sourceresolver.MetaResponse{Op: op}, nil
}

func (g *gateway) Inputs(context.Context) (map[string]llb.State, error) {
	return map[string]llb.State{}, nil
}

func (g *gateway) NewContainer(context.Context, client.NewContainerRequest) (client.Container, error) {
	return nil, errors.New("a frontend's containers are not known here")
}

func (g *gateway) Warn(_ context.Context, _ digest.Digest, msg string, o client.WarnOpts) error {
	w := frontend.Warning{Text: msg, URL: o.URL, Level: o.Level, Ranges: ranges(o.Range, 0)}
	for _, d := range o.Detail {
		w.Detail = append(w.Detail, string(d))
	}
	if o.SourceInfo != nil {
		w.Source = graph.Text{Name: o.SourceInfo.Filename, Data: o.SourceInfo.Data}
	}
	g.backend.Warn(w)
	return nil
}

// reference is the result of a graph, not built before it is needed.
type reference struct {
	g     *gateway
	graph *graph.Graph
	def   *pb.Definition
}

var _ client.Reference = (*reference)(nil)

func (r *reference) ToState() (llb.State, error) {
	op, err := llb.NewDefinitionOp(r.def)
	if err != nil {
		return llb.State{}, err
	}
	return llb.NewState(op), nil
}

func (r *reference) Evaluate(ctx context.Context) error {
	return r.g.backend.Evaluate(ctx, r.graph)
}

// ReadFile reads a whole file in parts if there is no range; the frontend bounds what it reads.
func (r *reference) ReadFile(ctx context.Context, req client.ReadRequest) ([]byte, error) {
	if req.Range != nil {
		return r.g.backend.ReadFile(ctx, r.graph, req.Filename, int64(req.Range.Offset), min(req.Range.Length, frontend.MaxRead))
	}
	b, err := r.g.backend.ReadFile(ctx, r.graph, req.Filename, 0, frontend.MaxRead)
	if err == nil && len(b) == frontend.MaxRead {
		return nil, &errdefs.Error{
			Op: "read", What: req.Filename, Kind: errdefs.Exhausted,
			Why: fmt.Sprintf("it is longer than %d MiB", frontend.MaxRead>>20),
		}
	}
	return b, err
}

func (r *reference) StatFile(ctx context.Context, req client.StatRequest) (*fstypes.Stat, error) {
	s, err := r.g.backend.Stat(ctx, r.graph, req.Path)
	if err != nil {
		return nil, err
	}
	return fstat(s), nil
}

func (r *reference) ReadDir(ctx context.Context, req client.ReadDirRequest) ([]*fstypes.Stat, error) {
	list, err := r.g.backend.ReadDir(ctx, r.graph, req.Path, req.IncludePattern)
	if err != nil {
		return nil, err
	}
	out := make([]*fstypes.Stat, len(list))
	for i := range list {
		out[i] = fstat(&list[i])
	}
	return out, nil
}

func fstat(s *frontend.Stat) *fstypes.Stat {
	return &fstypes.Stat{Path: s.Path, Mode: s.Mode, Uid: s.UID, Gid: s.GID, Size: s.Size, ModTime: s.ModTime, Linkname: s.Link}
}
