package dockerfile

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/onggi/onggi/build/graph"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// convert makes a graph of an LLB definition: its last operation has the result as its only input.
func convert(def *pb.Definition) (*graph.Graph, error) {
	g := &graph.Graph{}
	if def == nil || len(def.Def) == 0 {
		return g, nil
	}
	ops := make(map[digest.Digest]*pb.Op, len(def.Def))
	var last digest.Digest
	for _, b := range def.Def {
		op := &pb.Op{}
		if err := op.UnmarshalVT(b); err != nil {
			return nil, fmt.Errorf("an operation cannot be read: %w", err)
		}
		last = digest.FromBytes(b)
		ops[last] = op
	}
	if def.Source != nil {
		for _, info := range def.Source.Infos {
			g.Sources = append(g.Sources, graph.Text{Name: info.Filename, Data: info.Data})
		}
	}
	terminal := ops[last]
	if terminal.Op != nil || len(terminal.Inputs) != 1 {
		return nil, errors.New("the definition does not end with its result")
	}
	done := map[digest.Digest]bool{}
	var visit func(d digest.Digest) error
	visit = func(d digest.Digest) error {
		if done[d] {
			return nil
		}
		done[d] = true
		op := ops[d]
		if op == nil {
			return fmt.Errorf("the operation %s is missing", d)
		}
		for _, in := range op.Inputs {
			if err := visit(digest.Digest(in.Digest)); err != nil {
				return err
			}
		}
		v, err := vertex(op)
		if err != nil {
			return err
		}
		v.ID = d
		if err := describe(v, def.Metadata[string(d)]); err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
		if def.Source != nil {
			if l := def.Source.Locations[string(d)]; l != nil {
				v.Locations = locations(l.Locations, len(g.Sources))
			}
		}
		g.Vertices = append(g.Vertices, v)
		return nil
	}
	in := terminal.Inputs[0]
	if err := visit(digest.Digest(in.Digest)); err != nil {
		return nil, err
	}
	g.Output = &graph.Edge{Vertex: digest.Digest(in.Digest), Output: int(in.Index)}
	return g, g.Check()
}

func locations(ls []*pb.Location, texts int) (out []graph.Location) {
	for _, l := range ls {
		if int(l.SourceIndex) < 0 || int(l.SourceIndex) >= texts {
			continue // a location without a text
		}
		out = append(out, ranges(l.Ranges, int(l.SourceIndex))...)
	}
	return out
}

func ranges(rs []*pb.Range, text int) (out []graph.Location) {
	for _, r := range rs {
		if r.Start == nil {
			continue
		}
		end := int(r.Start.Line)
		if r.End != nil && int(r.End.Line) > end {
			end = int(r.End.Line)
		}
		if n := len(out); n > 0 && int(r.Start.Line) == out[n-1].End+1 {
			out[n-1].End = end // the parser gives each line of a continued instruction
			continue
		}
		out = append(out, graph.Location{Text: text, Start: int(r.Start.Line), End: end})
	}
	return out
}

// describe takes over what is not part of the operation. ExportCache is of no use to us (our cache keeps every result that
// its bound allows), and Caps say what LLB needs of a daemon: what is missing here has failed in vertex already.
func describe(v *graph.Vertex, m *pb.OpMetadata) error {
	if m == nil {
		return nil
	}
	v.IgnoreCache = m.IgnoreCache
	v.Name = m.Description["llb.customname"]
	v.Comment = m.Description["com.docker.dockerfile.v1.command"]
	if m.ProgressGroup != nil {
		v.Group = m.ProgressGroup.Id
		if v.Name == "" {
			v.Name = m.ProgressGroup.Name
		}
	}
	if r := m.LinuxResources; r != nil {
		v.Resources = &graph.Resources{
			Memory: r.Memory, MemorySwap: r.MemorySwap, CPUShares: r.CpuShares, CPUPeriod: r.CpuPeriod, CPUQuota: r.CpuQuota,
			CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems,
		}
	}
	return nil
}

func vertex(op *pb.Op) (*graph.Vertex, error) {
	v := &graph.Vertex{}
	for _, in := range op.Inputs {
		v.Inputs = append(v.Inputs, graph.Edge{Vertex: digest.Digest(in.Digest), Output: int(in.Index)})
	}
	if p := op.Platform; p != nil {
		v.Platform = &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
	}
	if op.Constraints != nil && len(op.Constraints.Filter) > 0 {
		return nil, errors.New("worker constraints are not known here")
	}
	var err error
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		v.Source, err = source(o.Source)
	case *pb.Op_Exec:
		v.Exec, err = execOp(o.Exec)
	case *pb.Op_File:
		v.File, err = fileOp(o.File)
	case *pb.Op_Merge:
		v.Merge = &graph.Merge{}
		// The graph's merge stacks all inputs in order.
		inputs := make([]graph.Edge, 0, len(o.Merge.Inputs))
		for _, in := range o.Merge.Inputs {
			if in.Input < 0 || int(in.Input) >= len(v.Inputs) {
				return nil, fmt.Errorf("a merge of an input %d of %d", in.Input, len(v.Inputs))
			}
			inputs = append(inputs, v.Inputs[in.Input])
		}
		v.Inputs = inputs
	case *pb.Op_Diff:
		v.Diff = &graph.Diff{Lower: -1, Upper: -1}
		if o.Diff.Lower != nil {
			v.Diff.Lower = int(o.Diff.Lower.Input)
		}
		if o.Diff.Upper != nil {
			v.Diff.Upper = int(o.Diff.Upper.Input)
		}
	default:
		err = fmt.Errorf("the operation %T is not known here", op.Op)
	}
	return v, err
}

var knownAttrs = map[string]bool{
	graph.AttrIncludePatterns: true, graph.AttrExcludePatterns: true, graph.AttrFollowPaths: true, graph.AttrSharedKeyHint: true,
	graph.AttrLocalSession: true, graph.AttrLocalUnique: true, graph.AttrLocalDiffer: true,
	graph.AttrImageResolveMode: true, graph.AttrImageRecordType: true, graph.AttrImageChecksum: true,
	graph.AttrHTTPChecksum: true, graph.AttrHTTPFilename: true, graph.AttrHTTPPerm: true, graph.AttrHTTPUID: true, graph.AttrHTTPGID: true,
	graph.AttrHTTPAuthSecret: true, graph.AttrGitKeepDir: true, graph.AttrGitFullURL: true, graph.AttrGitAuthHeader: true,
	graph.AttrGitAuthToken: true, graph.AttrGitKnownSSHHosts: true, graph.AttrGitMountSSHSock: true, graph.AttrGitChecksum: true,
	graph.AttrGitSkipSubmodules: true, graph.AttrGitMTime: true, graph.AttrGitFetchByCommit: true, graph.AttrGitAdvice: true,
	graph.AttrOCILayoutSessionID: true, graph.AttrOCILayoutStoreID: true,
}

func source(s *pb.SourceOp) (*graph.Source, error) {
	scheme, ref, ok := strings.Cut(s.Identifier, "://")
	if !ok {
		return nil, fmt.Errorf("the source %q has no scheme", s.Identifier)
	}
	for k := range s.Attrs {
		if !knownAttrs[k] && !strings.HasPrefix(k, graph.AttrHTTPHeader) {
			return nil, fmt.Errorf("the source attribute %q is not known here", k)
		}
	}
	return &graph.Source{Scheme: scheme, Ref: ref, Attrs: s.Attrs}, nil
}

func execOp(x *pb.ExecOp) (*graph.Exec, error) {
	m := x.Meta
	if m == nil {
		return nil, errors.New("an exec without a command")
	}
	e := &graph.Exec{
		Args: m.Args, Env: m.Env, Cwd: m.Cwd, User: m.User, Hostname: m.Hostname, CgroupParent: m.CgroupParent,
		RemoveMountStubs: m.RemoveMountStubsRecursive, Insecure: x.Security == pb.SecurityMode_INSECURE,
	}
	switch x.Network {
	case pb.NetMode_UNSET:
		e.Network = graph.NetworkSandbox
	case pb.NetMode_HOST:
		e.Network = graph.NetworkHost
	case pb.NetMode_NONE:
		e.Network = graph.NetworkNone
	default:
		return nil, fmt.Errorf("the network mode %v is not known here", x.Network)
	}
	for _, h := range m.ExtraHosts {
		if net.ParseIP(h.IP) == nil {
			return nil, fmt.Errorf("the address %q of the host %q cannot be read", h.IP, h.Host)
		}
		e.ExtraHosts = append(e.ExtraHosts, graph.HostIP{Host: h.Host, IP: h.IP})
	}
	for _, u := range m.Ulimit {
		e.Ulimits = append(e.Ulimits, graph.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if p := m.ProxyEnv; p != nil {
		e.Proxy = &graph.Proxy{HTTP: p.HttpProxy, HTTPS: p.HttpsProxy, FTP: p.FtpProxy, No: p.NoProxy, All: p.AllProxy}
	}
	for _, c := range m.ValidExitCodes {
		e.ValidExitCodes = append(e.ValidExitCodes, int(c))
	}
	for _, s := range x.Secretenv {
		e.SecretEnv = append(e.SecretEnv, graph.SecretEnv{ID: s.ID, Name: s.Name, Optional: s.Optional})
	}
	for _, d := range x.CdiDevices {
		e.Devices = append(e.Devices, graph.Device{Name: d.Name, Optional: d.Optional})
	}
	for _, m := range x.Mounts {
		t, err := mount(m)
		if err != nil {
			return nil, err
		}
		e.Mounts = append(e.Mounts, t)
	}
	return e, nil
}

func mount(m *pb.Mount) (graph.Mount, error) {
	t := graph.Mount{Input: int(m.Input), Selector: m.Selector, Dest: m.Dest, Output: int(m.Output), Readonly: m.Readonly}
	if m.ResultID != "" {
		return t, errors.New("a mount of a result by its id is not known here")
	}
	switch m.ContentCache {
	case pb.MountContentCache_DEFAULT:
	case pb.MountContentCache_ON:
		t.ContentCache = "on"
	case pb.MountContentCache_OFF:
		t.ContentCache = "off"
	}
	switch m.MountType {
	case pb.MountType_BIND:
		t.Type = graph.MountBind
	case pb.MountType_TMPFS:
		t.Type = graph.MountTmpfs
		if m.TmpfsOpt != nil {
			t.Size = m.TmpfsOpt.Size
		}
	case pb.MountType_CACHE:
		t.Type = graph.MountCache
		if c := m.CacheOpt; c != nil {
			t.Cache = &graph.Cache{ID: c.ID}
			switch c.Sharing {
			case pb.CacheSharingOpt_SHARED:
				t.Cache.Sharing = graph.Shared
			case pb.CacheSharingOpt_PRIVATE:
				t.Cache.Sharing = graph.Private
			case pb.CacheSharingOpt_LOCKED:
				t.Cache.Sharing = graph.Locked
			}
		}
	case pb.MountType_SECRET:
		t.Input, t.Output = -1, -1 // LLB leaves them at 0, which means nothing here
		t.Type = graph.MountSecret
		if s := m.SecretOpt; s != nil {
			t.Secret = &graph.Secret{ID: s.ID, UID: s.Uid, GID: s.Gid, Mode: s.Mode, Optional: s.Optional}
		}
	case pb.MountType_SSH:
		t.Input, t.Output = -1, -1
		t.Type = graph.MountSSH
		if s := m.SSHOpt; s != nil {
			t.Secret = &graph.Secret{ID: s.ID, UID: s.Uid, GID: s.Gid, Mode: s.Mode, Optional: s.Optional}
		}
	default:
		return t, fmt.Errorf("the mount type %v is not known here", m.MountType)
	}
	return t, nil
}

func fileOp(f *pb.FileOp) (*graph.File, error) {
	out := &graph.File{}
	for _, a := range f.Actions {
		t := graph.Action{Input: int(a.Input), Secondary: int(a.SecondaryInput), Output: int(a.Output)}
		switch x := a.Action.(type) {
		case *pb.FileAction_Copy:
			c := x.Copy
			t.Copy = &graph.Copy{
				Src: c.Src, Dest: c.Dest, Owner: owner(c.Owner), Mode: int(c.Mode), ModeStr: c.ModeStr, FollowSymlink: c.FollowSymlink,
				DirContents: c.DirCopyContents, Unpack: c.AttemptUnpackDockerCompatibility, CreateDestPath: c.CreateDestPath,
				Wildcard: c.AllowWildcard, EmptyWildcard: c.AllowEmptyWildcard, Timestamp: c.Timestamp, Include: c.IncludePatterns,
				Exclude: c.ExcludePatterns, Required: c.RequiredPaths, AlwaysReplace: c.AlwaysReplaceExistingDestPaths,
			}
		case *pb.FileAction_Mkfile:
			m := x.Mkfile
			t.Mkfile = &graph.Mkfile{Path: m.Path, Mode: int(m.Mode), Data: m.Data, Owner: owner(m.Owner), Timestamp: m.Timestamp}
		case *pb.FileAction_Mkdir:
			m := x.Mkdir
			t.Mkdir = &graph.Mkdir{Path: m.Path, Mode: int(m.Mode), Parents: m.MakeParents, Owner: owner(m.Owner), Timestamp: m.Timestamp}
		case *pb.FileAction_Symlink:
			m := x.Symlink
			t.Symlink = &graph.Symlink{Target: m.Oldpath, Path: m.Newpath, Owner: owner(m.Owner), Timestamp: m.Timestamp}
		case *pb.FileAction_Rm:
			t.Rm = &graph.Rm{Path: x.Rm.Path, AllowNotFound: x.Rm.AllowNotFound, Wildcard: x.Rm.AllowWildcard}
		default:
			return nil, fmt.Errorf("the file action %T is not known here", a.Action)
		}
		out.Actions = append(out.Actions, t)
	}
	return out, nil
}

func owner(o *pb.ChownOpt) *graph.Owner {
	if o == nil {
		return nil
	}
	return &graph.Owner{User: principal(o.User), Group: principal(o.Group)}
}

func principal(u *pb.UserOpt) *graph.Principal {
	if u == nil {
		return nil
	}
	switch x := u.User.(type) {
	case *pb.UserOpt_ByName:
		return &graph.Principal{Name: x.ByName.Name, Input: int(x.ByName.Input)}
	case *pb.UserOpt_ByID:
		return &graph.Principal{Input: -1, ID: x.ByID}
	}
	return nil
}
