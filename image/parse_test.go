package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseDocumentRefuses(t *testing.T) {
	const (
		conf  = `"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + someDigest + `","size":2}`
		layer = `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + someDigest + `","size":3}`
		list  = `"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + someDigest + `","size":2}]`
	)
	man := "application/vnd.oci.image.manifest.v1+json"
	for name, c := range map[string]struct {
		mediaType, text string
		kind            errdefs.Kind
		why             string
	}{
		"good":               {man, `{"schemaVersion":2,` + conf + `,"layers":[` + layer + `]}`, 0, ""},
		"good index":         {"", `{"schemaVersion":2,` + list + `}`, 0, ""},
		"no JSON":            {"", `{`, errdefs.Corrupt, "not JSON"},
		"an array":           {"", `[]`, errdefs.Corrupt, "not one"},
		"two documents":      {"", `{"schemaVersion":2,` + list + `}{}`, errdefs.Corrupt, "follows"},
		"schema 1":           {"", `{"schemaVersion":1,"fsLayers":[]}`, errdefs.Unsupported, "schema 1"},
		"schema 3":           {"", `{"schemaVersion":3,` + list + `}`, errdefs.Corrupt, "schemaVersion is 3"},
		"both":               {"", `{"schemaVersion":2,` + conf + `,"layers":[],` + list + `}`, errdefs.Corrupt, "at once"},
		"neither":            {"", `{"schemaVersion":2}`, errdefs.Corrupt, "neither"},
		"another type":       {man, `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",` + conf + `,"layers":[]}`, errdefs.Corrupt, "calls itself"},
		"index as manifest":  {man, `{"schemaVersion":2,` + list + `}`, errdefs.Corrupt, "it is an index"},
		"manifest as index":  {"application/vnd.oci.image.index.v1+json", `{"schemaVersion":2,` + conf + `,"layers":[]}`, errdefs.Corrupt, "it is a manifest"},
		"strange type":       {"text/html", `{"schemaVersion":2,` + list + `}`, errdefs.Unsupported, "text/html"},
		"member twice":       {"", `{"schemaVersion":2,` + list + `,` + list + `}`, errdefs.Corrupt, "twice"},
		"digest twice":       {"", `{"schemaVersion":2,"manifests":[{"digest":"` + someDigest + `","digest":"x","size":1}]}`, errdefs.Corrupt, "twice"},
		"other capitals":     {"", `{"schemaVersion":2,"Manifests":[]}`, errdefs.Corrupt, "can be taken for"},
		"annotations free":   {"", `{"schemaVersion":2,` + list + `,"annotations":{"Layers":"a","layers":"b"}}`, 0, ""},
		"no digest":          {"", `{"schemaVersion":2,"config":{"size":1},"layers":[]}`, errdefs.Corrupt, "malformed"},
		"a path as digest":   {"", `{"schemaVersion":2,"config":{"digest":"sha256:../../etc","size":1},"layers":[]}`, errdefs.Corrupt, "malformed"},
		"negative size":      {"", `{"schemaVersion":2,"config":{"digest":"` + someDigest + `","size":-1},"layers":[]}`, errdefs.Corrupt, "negative"},
		"size no number":     {"", `{"schemaVersion":2,"config":{"digest":"` + someDigest + `","size":"1"},"layers":[]}`, errdefs.Corrupt, "manifest"},
		"size too large":     {"", `{"schemaVersion":2,"config":{"digest":"` + someDigest + `","size":9000000000000000000000},"layers":[]}`, errdefs.Corrupt, "manifest"},
		"a helm chart":       {"", `{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"` + someDigest + `","size":1},"layers":[]}`, errdefs.Unsupported, "not a container image"},
		"a huge config":      {"", `{"schemaVersion":2,"config":{"digest":"` + someDigest + `","size":99999999},"layers":[]}`, errdefs.Corrupt, "99999999 bytes"},
		"an encrypted layer": {"", `{"schemaVersion":2,` + conf + `,"layers":[` + strings.Replace(layer, "v1.tar", "v1.tar+gzip+encrypted", 1) + `]}`, errdefs.Unsupported, "encrypted"},
		"a foreign layer":    {"", `{"schemaVersion":2,` + conf + `,"layers":[` + strings.Replace(layer, "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", 1) + `]}`, errdefs.Unsupported, "Windows"},
		"a strange layer":    {"", `{"schemaVersion":2,` + conf + `,"layers":[` + strings.Replace(layer, "application/vnd.oci.image.layer.v1.tar", "image/png", 1) + `]}`, errdefs.Unsupported, "image/png"},
		"thousands":          {"", `{"schemaVersion":2,` + conf + `,"layers":[` + strings.Repeat(layer+",", 2000) + layer + `]}`, errdefs.Unsupported, "2001 layers"},
		"empty index":        {"", `{"schemaVersion":2,"manifests":[]}`, errdefs.Corrupt, "lists nothing"},
		"deep":               {"", `{"schemaVersion":2,"manifests":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, errdefs.Corrupt, "deep"},
		"too large":          {"", `{"schemaVersion":2,` + list + `}` + strings.Repeat(" ", 4<<20), errdefs.Corrupt, "more than"},
	} {
		_, err := parseDocument(c.mediaType, []byte(c.text))
		if errdefs.KindOf(err) != c.kind || c.why != "" && !strings.Contains(fmt.Sprint(err), c.why) {
			t.Errorf("%s: got %v (%v), want %v with %q", name, err, errdefs.KindOf(err), c.kind, c.why)
		}
	}
}

func TestParseConfigRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		kind errdefs.Kind
		why  string
	}{
		"good":           {`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]},"config":{"Labels":{"a":"1","A":"2"}}}`, 0, ""},
		"no JSON":        {`nope`, errdefs.Corrupt, "not JSON"},
		"windows":        {`{"os":"windows","rootfs":{"type":"layers"}}`, errdefs.Unsupported, "windows"},
		"a path":         {`{"rootfs":{"type":"layers","diff_ids":["sha256:../.."]}}`, errdefs.Corrupt, "no digest"},
		"another type":   {`{"rootfs":{"type":"vhd","diff_ids":[]}}`, errdefs.Corrupt, "vhd"},
		"twice":          {`{"rootfs":{"type":"layers"},"rootfs":{"type":"layers"}}`, errdefs.Corrupt, "twice"},
		"too many":       {`{"rootfs":{"type":"layers","diff_ids":["` + strings.Repeat(someDigest+`","`, 600) + someDigest + `"]}}`, errdefs.Corrupt, "601 layers"},
		"wrong env type": {`{"config":{"Env":"A=b"}}`, errdefs.Corrupt, "configuration"},
	} {
		_, err := parseConfig([]byte(c.text))
		if errdefs.KindOf(err) != c.kind || c.why != "" && !strings.Contains(fmt.Sprint(err), c.why) {
			t.Errorf("%s: got %v (%v), want %v with %q", name, err, errdefs.KindOf(err), c.kind, c.why)
		}
	}
}

func TestChoosesThePlatform(t *testing.T) {
	all := []string{"linux/386", "linux/amd64", "linux/amd64/v3", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "windows/amd64", "linux/s390x"}
	idx := func(names ...string) *ocispec.Index {
		var x ocispec.Index
		for _, n := range names {
			f := append(strings.Split(n, "/"), "", "")
			x.Manifests = append(x.Manifests, ocispec.Descriptor{ArtifactType: n, Platform: &ocispec.Platform{OS: f[0], Architecture: f[1], Variant: f[2]}})
		}
		return &x
	}
	for _, c := range []struct {
		want  string
		have  []string
		taken string
	}{
		{"linux/amd64", all, "linux/amd64"},
		{"linux/amd64/v2", all, "linux/amd64"},
		{"linux/amd64/v4", all, "linux/amd64/v3"},
		{"linux/x86_64", all, "linux/amd64"},
		{"linux/arm/v6", all, "linux/arm/v6"},
		{"linux/arm", all, "linux/arm/v7"},
		{"linux/arm/v8", all, "linux/arm/v7"},
		{"linux/arm64", all, "linux/arm64/v8"},
		{"linux/aarch64/v8", all, "linux/arm64/v8"},
		{"linux/386", all, "linux/386"},
		{"linux/riscv64", all, ""},
		{"linux/arm/v6", []string{"linux/arm/v7"}, ""},
		{"linux/amd64", []string{"unknown/unknown", "linux/amd64/v2"}, ""},
	} {
		p, err := ParsePlatform(c.want)
		must(t, err)
		got, err := choose(idx(c.have...), p)
		if got.ArtifactType != c.taken || (err == nil) != (c.taken != "") {
			t.Errorf("for %s of %v: took %q, %v; want %q", c.want, c.have, got.ArtifactType, err, c.taken)
		}
		if c.taken == "" && !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("for %s: %v, want NotFound", c.want, err)
		}
	}
	_, err := choose(idx(all...), ocispec.Platform{OS: "linux", Architecture: "riscv64"})
	if !strings.Contains(err.Error(), "linux/386, linux/amd64, linux/amd64/v3") || errdefs.FixOf(err) == "" {
		t.Errorf("the error does not list what there is: %v", err)
	}
	if d, err := choose(&ocispec.Index{Manifests: []ocispec.Descriptor{{ArtifactType: "one"}}}, HostPlatform()); err != nil || d.ArtifactType != "one" {
		t.Errorf("an entry without a platform: %v, %v", d, err)
	}
}

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"arm64": "linux/arm64", "linux/arm/7": "linux/arm/v7", "LINUX/AMD64": "linux/amd64",
		"": "", "linux/": "", "a/b/c/d": "", "windows/amd64": "", "linux/a b": "", "linux/\x1b": "",
	} {
		p, err := ParsePlatform(in)
		if want == "" && !errdefs.Is(err, errdefs.InvalidArgument) || want != "" && (err != nil || platformString(p) != want) {
			t.Errorf("%q: got %v, %v; want %q", in, p, err, want)
		}
	}
	if HostPlatform().OS != "linux" || HostPlatform().Architecture == "" {
		t.Errorf("the host is %v", HostPlatform())
	}
}

func TestIndexNames(t *testing.T) {
	e := func(n int) entry {
		d := strings.Replace(someDigest, "0123", fmt.Sprintf("%04d", n), 1)
		return entry{desc: ocispec.Descriptor{Digest: digest.Digest(d), Size: 1}, target: ocispec.Descriptor{Digest: digest.Digest(d), Size: 1}, id: digest.Digest(d)}
	}
	show := func(idx index) string {
		var s []string
		for _, e := range idx {
			s = append(s, fmt.Sprintf("%s=%s", e.name, e.desc.Digest[7:11]))
		}
		return strings.Join(s, " ")
	}
	var idx index
	idx = idx.name("a", e(1)).name("b", e(1)).name("a", e(2))
	if got := show(idx); got != "a=0002 b=0001" {
		t.Errorf("got %s", got)
	}
	before := slices.Clone(idx)
	idx = idx.name("b", e(2))
	if got := show(idx); got != "a=0002 b=0002 =0001" {
		t.Errorf("the loser of its last name is not kept: %s", got)
	}
	if got := show(idx.unname("b", e(2), before)); got != "a=0002 b=0001" {
		t.Errorf("taken back: %s", got)
	}
	idx = idx.name("c", e(1))
	if got := show(idx); got != "a=0002 b=0002 c=0001" {
		t.Errorf("a dangling image that is named: %s", got)
	}
	if got := show(idx.name("", e(1))); got != "a=0002 b=0002 c=0001" {
		t.Errorf("a named image does not get a nameless entry: %s", got)
	}
	b, err := idx.encode()
	must(t, err)
	back, err := parseIndex(b, "")
	if err != nil || show(back) != show(idx) || back[0].id != idx[0].id {
		t.Errorf("read back %s, %v", show(back), err)
	}
	some, err := parseIndex(b, `"b"`)
	if err != nil || show(some) != "b=0002" {
		t.Errorf("one line: %s, %v", show(some), err)
	}
	var x ocispec.Index
	must(t, json.Unmarshal(b, &x)) // it is an ordinary index for everybody else
	pretty, _ := json.MarshalIndent(x, "", " ")
	back, err = parseIndex(pretty, `"b"`)
	if err != nil || show(back) != show(idx) {
		t.Errorf("written by another program: %s, %v", show(back), err)
	}
}

func FuzzParseDocument(f *testing.F) {
	i := twoLayers("amd64")
	idx, _ := indexOf(i)
	f.Add("", i.manifest)
	f.Add(ocispec.MediaTypeImageIndex, idx)
	f.Add("", []byte(`{"schemaVersion":1,"fsLayers":[]}`))
	f.Add("", []byte(`{"schemaVersion":2,"Layers":[],"layers":[]}`))
	f.Fuzz(func(t *testing.T, mt string, b []byte) {
		d, err := parseDocument(mt, b)
		if err != nil {
			return
		}
		if (d.manifest == nil) == (d.index == nil) {
			t.Error("both or neither")
		}
		if d.manifest != nil && checkManifest(d.manifest) != nil || d.index != nil && checkIndex(d.index) != nil {
			t.Error("accepted and unchecked")
		}
		if d.index != nil {
			_, _ = choose(d.index, HostPlatform())
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add(twoLayers("arm64").config)
	f.Add([]byte(`{"config":{"Env":null},"rootfs":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConfig(b)
		if err == nil && len(c.RootFS.DiffIDs) > maxLayers {
			t.Error("unbounded")
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	b, _ := index{}.name("docker.io/library/a:b", entry{desc: ocispec.Descriptor{Digest: someDigest}, id: someDigest}).encode()
	f.Add(b)
	f.Add([]byte(`{"manifests":[{"digest":"` + someDigest + `"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		idx, err := parseIndex(b, "")
		if err != nil {
			return
		}
		out, err := idx.encode()
		must(t, err)
		if again, err := parseIndex(out, ""); err != nil || len(again) != len(idx) {
			t.Errorf("%d entries become %d, %v", len(idx), len(again), err)
		}
	})
}
