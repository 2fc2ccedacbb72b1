package build

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Provenance says how much is told of how an image was made.
type Provenance string

// The modes, as BuildKit's. MaxProvenance adds the build arguments, labels and the Dockerfile's text.
const (
	NoProvenance  Provenance = ""
	MinProvenance Provenance = "min"
	MaxProvenance Provenance = "max"
)

// The types of statements.
const (
	provenanceType = "https://slsa.dev/provenance/v1"
	statementType  = "https://in-toto.io/Statement/v0.1"
	// buildType says what the parameters mean: they are those of BuildKit's frontend.
	buildType = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
)

// statement is an in-toto statement (in-toto.io/Statement/v0.1), as BuildKit writes them.
type statement struct {
	Type          string    `json:"_type"`
	PredicateType string    `json:"predicateType"`
	Subject       []subject `json:"subject"`
	Predicate     any       `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// slsa is a provenance (slsa.dev/spec/v1.0/provenance).
type slsa struct {
	BuildDefinition struct {
		BuildType            string             `json:"buildType"`
		ExternalParameters   externalParameters `json:"externalParameters"`
		InternalParameters   map[string]any     `json:"internalParameters"`
		ResolvedDependencies []material         `json:"resolvedDependencies,omitempty"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
		Metadata map[string]any `json:"metadata"`
	} `json:"runDetails"`
}

type externalParameters struct {
	ConfigSource map[string]string `json:"configSource"`
	Request      struct {
		Frontend string              `json:"frontend"`
		Args     map[string]string   `json:"args,omitempty"`
		Locals   []map[string]string `json:"locals,omitempty"`
		Secrets  []map[string]any    `json:"secrets,omitempty"`
	} `json:"request"`
}

type material struct {
	URI    string            `json:"uri"`
	Digest map[string]string `json:"digest,omitempty"`
}

// attestations makes the statements that the user wants about one platform's image.
func (s *session) attestations(names []reference.Reference, p part) func(ocispec.Descriptor) ([]image.Statement, error) {
	if s.o.Provenance == NoProvenance && !s.o.SBOM {
		return nil
	}
	return func(m ocispec.Descriptor) ([]image.Statement, error) {
		var out []image.Statement
		add := func(kind string, predicate any) error {
			b, err := json.Marshal(statement{Type: statementType, PredicateType: kind, Subject: subjects(names, p, m.Digest), Predicate: predicate})
			out = append(out, image.Statement{PredicateType: kind, Data: b})
			return err
		}
		if s.o.SBOM {
			if err := add(spdxType, p.sbom); err != nil {
				return nil, err
			}
		}
		if s.o.Provenance != NoProvenance {
			if err := add(provenanceType, s.provenance(p)); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
}

func subjects(names []reference.Reference, p part, d digest.Digest) (out []subject) {
	sum := map[string]string{d.Algorithm().String(): d.Encoded()}
	for _, n := range names {
		out = append(out, subject{purl(n, platformName(p.platform.Platform)), sum})
	}
	if out == nil {
		out = []subject{{"_", sum}} // in-toto wants a name
	}
	return out
}

// purl names an image (github.com/package-url/purl-spec, type docker), as BuildKit does.
func purl(n reference.Reference, platform string) string {
	s := "pkg:docker/" + strings.TrimPrefix(strings.TrimPrefix(n.Repository(), "docker.io/"), "library/")
	if n.Tag != "" {
		s += "@" + n.Tag
	}
	return s + "?platform=" + url.QueryEscape(platform)
}

func (s *session) provenance(p part) *slsa {
	x := &slsa{}
	d := &x.BuildDefinition
	d.BuildType = buildType
	d.ExternalParameters.ConfigSource = map[string]string{"path": cmp(s.o.Request["filename"], "Dockerfile")}
	if c := s.o.Request["context"]; c != "" {
		d.ExternalParameters.ConfigSource["uri"] = clean(c)
	}
	r := &d.ExternalParameters.Request
	r.Frontend, r.Args = "dockerfile.v0", map[string]string{}
	for k, v := range s.o.Request {
		secretive := strings.HasPrefix(k, "build-arg:") || strings.HasPrefix(k, "label:")
		if secretive && (s.o.Provenance != MaxProvenance || isProxy(strings.TrimPrefix(k, "build-arg:"))) || k == "requestid" {
			continue // a proxy's address often has a password in it
		}
		if strings.HasPrefix(k, "context") {
			v = clean(v)
		}
		r.Args[k] = v
	}
	for k := range s.o.Locals {
		r.Locals = append(r.Locals, map[string]string{"name": k})
	}
	slices.SortFunc(r.Locals, func(a, b map[string]string) int { return strings.Compare(a["name"], b["name"]) })
	for k := range s.o.Secrets {
		r.Secrets = append(r.Secrets, map[string]any{"id": k, "optional": true})
	}
	slices.SortFunc(r.Secrets, func(a, b map[string]any) int { return strings.Compare(a["id"].(string), b["id"].(string)) })
	host := image.HostPlatform()
	d.InternalParameters = map[string]any{"builderPlatform": host.OS + "/" + host.Architecture}
	complete := map[string]bool{"request": s.o.Provenance == MaxProvenance, "resolvedDependencies": true}
	for _, v := range p.platform.Graph.Vertices {
		if v.Source == nil {
			continue
		}
		if m, ok := s.material(v); ok {
			d.ResolvedDependencies = append(d.ResolvedDependencies, m)
		} else {
			complete["resolvedDependencies"] = false // a directory of the user has no digest
		}
	}
	md := map[string]any{"buildkit_completeness": complete, "buildkit_reproducible": false}
	if s.epoch == nil { // else the same build gives the same provenance
		md["invocationID"], md["startedOn"], md["finishedOn"] = s.id, s.started.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339)
	}
	if s.o.Provenance == MaxProvenance {
		var infos []map[string]any
		for _, t := range p.platform.Graph.Sources {
			infos = append(infos, map[string]any{"filename": t.Name, "language": "Dockerfile", "data": t.Data})
		}
		md["buildkit_metadata"] = map[string]any{"source": map[string]any{"infos": infos}}
	}
	x.RunDetails.Metadata = md
	return x
}

func isProxy(name string) bool {
	return strings.HasSuffix(strings.ToLower(name), "_proxy")
}

// clean takes the password out of an address.
func clean(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return address
	}
	u.User = nil
	return u.String()
}

// material is what a source came to; false for a directory of the user.
func (s *session) material(v *graph.Vertex) (material, bool) {
	src := v.Source
	switch src.Scheme {
	case graph.Image:
		name, sum, _ := strings.Cut(src.Ref, "@")
		ref, err := reference.Parse(name)
		if err != nil {
			return material{}, false
		}
		plat := image.HostPlatform()
		if v.Platform != nil {
			plat = *v.Platform
		}
		alg, hex, _ := strings.Cut(sum, ":")
		return material{purl(ref, platformName(plat)), map[string]string{alg: hex}}, sum != ""
	case graph.Local:
		return material{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.materials[v.ID]
	return m, ok
}

// fetched remembers what a source came to.
func (s *session) fetched(v *graph.Vertex, uri, alg, sum string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.materials == nil {
		s.materials = map[digest.Digest]material{}
	}
	s.materials[v.ID] = material{clean(uri), map[string]string{alg: sum}}
}

// statementFile is a statement as it lies beside files.
type statementFile struct {
	name string
	data []byte
}

// statementFiles are the statements about files, whose subject is the tree; the names are BuildKit's.
func (s *session) statementFiles(p *part) (out []statementFile) {
	tree := digest.Digest(p.result.id())
	add := func(name, kind string, predicate any) {
		b, err := json.MarshalIndent(statement{Type: statementType, PredicateType: kind, Subject: subjects(nil, *p, tree), Predicate: predicate}, "", "  ")
		if err == nil {
			out = append(out, statementFile{name, append(b, '\n')})
		}
	}
	if s.o.SBOM {
		add("sbom.spdx.json", spdxType, p.sbom)
	}
	if s.o.Provenance != NoProvenance {
		add("provenance.json", provenanceType, s.provenance(*p))
	}
	return out
}

// tellProvenance puts the provenance among the build's facts, by buildx's names.
func (s *session) tellProvenance(b *built, out *Result) error {
	if s.o.Provenance == NoProvenance {
		return nil
	}
	out.Metadata = map[string]json.RawMessage{}
	for i := range b.parts {
		name := "buildx.build.provenance"
		if b.index {
			name += "/" + platformName(b.parts[i].platform.Platform)
		}
		raw, err := json.Marshal(s.provenance(b.parts[i]))
		if err != nil {
			return err
		}
		out.Metadata[name] = raw
	}
	return nil
}
