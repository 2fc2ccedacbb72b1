package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// named adds a name to an entry of a layout's index.
func named(d ocispec.Descriptor, annotation, name string) ocispec.Descriptor {
	d.Annotations = map[string]string{annotation: name}
	return d
}

// link is an entry of a test archive that is a link.
type link struct {
	name, to string
	hard     bool
}

// dockerArchive writes what docker save writes: plain layers in directories, manifest.json last.
func dockerArchive(tags map[string][]string, images map[string]*testImage, links ...link) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, data []byte) {
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg})
		_, _ = w.Write(data)
	}
	type item struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var list []item
	written := map[string]bool{}
	for key, i := range images {
		x := item{Config: i.id.Encoded() + ".json", RepoTags: tags[key]}
		for n, l := range i.layers {
			dir := fmt.Sprintf("%s-%d/", key, n)
			_ = w.WriteHeader(&tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir})
			put(dir+"VERSION", []byte("1.0"))
			x.Layers = append(x.Layers, dir+"layer.tar")
			linked := false
			for _, k := range links {
				linked = linked || k.name == dir+"layer.tar"
			}
			if !linked {
				put(dir+"layer.tar", l.tar)
			}
		}
		if !written[x.Config] {
			put(x.Config, i.config)
		}
		written[x.Config] = true
		list = append(list, x)
	}
	for _, k := range links {
		typ := byte(tar.TypeSymlink)
		if k.hard {
			typ = tar.TypeLink
		}
		_ = w.WriteHeader(&tar.Header{Name: k.name, Linkname: k.to, Typeflag: typ})
	}
	m, _ := json.Marshal(list)
	put("manifest.json", m)
	put("repositories", []byte("{}"))
	_ = w.Close()
	return b.Bytes()
}

func compressed(how string, b []byte) []byte {
	var out bytes.Buffer
	switch how {
	case "gzip":
		z := gzip.NewWriter(&out)
		_, _ = z.Write(b)
		_ = z.Close()
	case "zstd":
		z, _ := zstd.NewWriter(&out)
		_, _ = z.Write(b)
		_ = z.Close()
	default:
		return b
	}
	return out.Bytes()
}

// stream hides that the bytes are in memory: no seeking, small pieces.
func stream(b []byte) io.Reader { return io.MultiReader(bytes.NewReader(b)) }

func TestLoad(t *testing.T) {
	big := imageOf("amd64", layerOf("", file{"etc/", ""}, file{"big", strings.Repeat("0123456789abcdef", 1<<17)}), layerOf("", file{"etc/hostname", "other"}))
	small := imageOf("amd64", layerOf("", file{"etc/hostname", "small"}))
	oci := twoLayers("amd64")
	arm := twoLayers("arm64")
	idx, idxDesc := indexOf(arm, oci)
	docs := map[digest.Digest][]byte{idxDesc.Digest: idx}
	for _, i := range []*testImage{oci, arm} {
		for d, b := range i.documents {
			docs[d] = b
		}
	}
	for name, c := range map[string]struct {
		archive []byte
		names   []string
		file    string
	}{
		"docker":               {dockerArchive(map[string][]string{"a": {"me/big:1", "me/big:2"}}, map[string]*testImage{"a": big}), []string{"me/big:1 me/big:2"}, "other"},
		"docker without a tag": {dockerArchive(nil, map[string]*testImage{"a": small}), []string{""}, "small"},
		"docker with links": {dockerArchive(map[string][]string{"a": {"x:1"}, "b": {"x:2"}}, map[string]*testImage{"a": big, "b": imageOf("amd64", big.layers[0], layerOf("", file{"etc/hostname", "other"}, file{"b", ""}))},
			link{"b-0/layer.tar", "../a-0/layer.tar", false}), []string{"x:1", "x:2"}, "other"},
		"docker with hard links": {dockerArchive(map[string][]string{"a": {"x:1"}, "b": {"x:2"}}, map[string]*testImage{"a": big, "b": big},
			link{"b-0/layer.tar", "a-0/layer.tar", true}), []string{"x:1", "x:2"}, "other"},
		"oci":                       {ociArchive(oci.documents, named(oci.desc, ocispec.AnnotationRefName, "me/app:1")), []string{"me/app:1"}, "other"},
		"oci by containerd":         {ociArchive(oci.documents, named(oci.desc, annotationContainerd, "127.0.0.1:5000/me/app:1")), []string{"127.0.0.1:5000/me/app:1"}, "other"},
		"oci without a name":        {ociArchive(oci.documents, oci.desc), []string{""}, "other"},
		"oci with only a tag":       {ociArchive(oci.documents, named(oci.desc, ocispec.AnnotationRefName, "latest")), []string{""}, "other"},
		"oci with an index":         {ociArchive(docs, named(idxDesc, ocispec.AnnotationRefName, "me/multi:1")), []string{"me/multi:1"}, "other"},
		"oci with a foreign plat":   {ociArchive(docs, named(arm.desc, ocispec.AnnotationRefName, "me/arm:1")), []string{"me/arm:1"}, "other"},
		"oci with unneeded members": {ociArchive(docs, named(oci.desc, ocispec.AnnotationRefName, "me/app:1")), []string{"me/app:1"}, "other"},
	} {
		for _, how := range []string{"", "gzip", "zstd"} {
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				s := root(t)
				s2 := *s
				got, err := s2.loadFor(t, stream(compressed(how, c.archive)))
				must(t, err)
				seen := map[string]bool{}
				for _, img := range got {
					var names []string
					for _, n := range img.Names {
						names = append(names, n.Familiar())
					}
					seen[strings.Join(names, " ")] = true
					if h := read(t, s, img, "etc/hostname"); h != c.file {
						t.Errorf("%v: etc/hostname is %q, want %q", names, h, c.file)
					}
					if again, err := s.Get(string(img.ID)); err != nil || again.ID != img.ID {
						t.Errorf("%v cannot be found: %v", img.ID, err)
					}
				}
				for _, n := range c.names {
					if !seen[n] {
						t.Errorf("got names %v, want %v", seen, c.names)
					}
				}
				// Nothing but what the images need stays: a sweep finds nothing to do.
				before := left(t, s)
				must(t, s.Sweep(bg))
				if after := left(t, s); len(after) != len(before) {
					t.Errorf("a sweep still found something: %q, then %q", before, after)
				}
				for _, img := range got {
					for range max(1, len(img.Names)) {
						id := string(img.ID)
						if _, err := s.Remove(bg, id, true, nil); err != nil && !errdefs.Is(err, errdefs.NotFound) {
							t.Error(err)
						}
					}
				}
				wantNothing(t, s)
			})
		}
	}
}

// loadFor loads as a machine of amd64 would.
func (s *Store) loadFor(t *testing.T, r io.Reader) ([]*Image, error) {
	t.Helper()
	if HostPlatform().Architecture != "amd64" {
		t.Skip("the test's images are for amd64")
	}
	return s.Load(bg, r, func(Progress) {})
}

func TestBadArchives(t *testing.T) {
	good := twoLayers("amd64")
	good1 := imageOf("amd64", layerOf("", file{"a", strings.Repeat("a", 2<<20)}))
	docker := dockerArchive(map[string][]string{"a": {"x:1"}}, map[string]*testImage{"a": good1})
	without := func(d digest.Digest) map[digest.Digest][]byte {
		m := map[digest.Digest][]byte{}
		for k, v := range good.documents {
			if k != d {
				m[k] = v
			}
		}
		return m
	}
	swapped := without("")
	swapped[good.layers[0].desc.Digest] = good.layers[1].blob
	many := func() []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for n := range maxMembers + 10 {
			_ = w.WriteHeader(&tar.Header{Name: fmt.Sprintf("f%d", n), Typeflag: tar.TypeReg})
		}
		_ = w.Close()
		return b.Bytes()
	}
	for name, c := range map[string]struct {
		archive []byte
		kind    errdefs.Kind
		why     string
	}{
		"empty":                {nil, errdefs.Corrupt, "empty"},
		"no tar":               {bytes.Repeat([]byte("kimchi "), 1000), errdefs.Corrupt, "archive"},
		"xz":                   {[]byte("\xfd7zXZ\x00rest"), errdefs.Unsupported, "xz"},
		"bzip2":                {[]byte("BZh91AY"), errdefs.Unsupported, "bzip2"},
		"a root file system":   {tarOf(file{"bin/", ""}, file{"bin/sh", "x"}), errdefs.InvalidArgument, "neither manifest.json nor index.json"},
		"docker 1.9":           {tarOf(file{"repositories", "{}"}), errdefs.Unsupported, "1.10"},
		"manifest.json broken": {tarOf(file{"manifest.json", "[{"}), errdefs.Corrupt, "manifest.json"},
		"manifest.json empty":  {tarOf(file{"manifest.json", "[]"}), errdefs.Corrupt, "0 images"},
		"config missing":       {tarOf(file{"manifest.json", `[{"Config":"x.json","Layers":[]}]`}), errdefs.Corrupt, "lacks"},
		"config outside":       {tarOf(file{"manifest.json", `[{"Config":"../../../etc/passwd","Layers":[]}]`}), errdefs.Corrupt, "lacks"},
		"layer missing":        {tarOf(file{"manifest.json", `[{"Config":"c.json","Layers":["l.tar"]}]`}, file{"c.json", string(good1.config)}), errdefs.Corrupt, "lacks"},
		"fewer layers":         {tarOf(file{"manifest.json", `[{"Config":"c.json","Layers":[]}]`}, file{"c.json", string(good1.config)}), errdefs.Corrupt, "lists 0 layers"},
		"bad tag":              {dockerArchive(map[string][]string{"a": {"UPPER:1"}}, map[string]*testImage{"a": good1}), errdefs.InvalidArgument, "lower case"},
		"truncated":            {docker[:len(docker)/2], errdefs.Corrupt, ""},
		"truncated gzip":       {compressed("gzip", docker)[:2000], errdefs.Corrupt, ""},
		"link to itself":       {dockerArchive(nil, map[string]*testImage{"a": good1}, link{"a-0/layer.tar", "layer.tar", false}), errdefs.Corrupt, "circles"},
		"link to the host":     {dockerArchive(nil, map[string]*testImage{"a": good1}, link{"a-0/layer.tar", "/etc/passwd", false}), errdefs.Corrupt, "outside"},
		"link upwards":         {dockerArchive(nil, map[string]*testImage{"a": good1}, link{"a-0/layer.tar", "../../../../../../etc/passwd", false}), errdefs.Corrupt, "lacks"},
		"another layer's data": {dockerArchive(map[string][]string{"a": {"x:1"}}, map[string]*testImage{"a": {layers: []testLayer{{tar: tarOf(file{"b", "b"})}}, config: good1.config, id: good1.id}}), errdefs.Corrupt, "digest"},
		"a member twice":       {tarOf(file{"manifest.json", "[]"}, file{"./manifest.json", "[]"}), errdefs.Corrupt, "twice"},
		"oci: a blob lies":     {ociArchive(swapped, good.desc), errdefs.Corrupt, "content of"},
		"oci: no layer":        {ociArchive(without(good.layers[0].desc.Digest), good.desc), errdefs.Corrupt, "lacks the blob"},
		"oci: no config":       {ociArchive(without(good.id), good.desc), errdefs.Corrupt, "lacks the blob"},
		"oci: no manifest":     {ociArchive(without(good.desc.Digest), good.desc), errdefs.Corrupt, "lacks the blob"},
		"oci: bad name":        {ociArchive(good.documents, named(good.desc, ocispec.AnnotationRefName, "a b")), errdefs.InvalidArgument, "may hold only"},
		"oci: blob's name":     {tarOf(file{"blobs/sha256/..%2f", "x"}), errdefs.Corrupt, "no blob"},
		"oci: index broken":    {tarOf(file{"index.json", "{"}), errdefs.Corrupt, ""},
		"too many members":     {many(), errdefs.Corrupt, "more than 20000 members"},
		"one good, one not":    {dockerArchive(map[string][]string{"a": {"x:1"}, "b": {"x:2"}}, map[string]*testImage{"a": good1, "b": {layers: []testLayer{{tar: []byte("no")}}, config: good1.config, id: digest.FromString("b")}}), errdefs.Corrupt, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := root(t)
			got, err := s.Load(bg, stream(c.archive), nil)
			if !errdefs.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.why) {
				t.Errorf("got %v, %v (%v), want %v with %q", got, err, errdefs.KindOf(err), c.kind, c.why)
			}
			wantNothing(t, s)
		})
	}
}

func TestLoadOfAFailingReader(t *testing.T) {
	s := root(t)
	b := dockerArchive(nil, map[string]*testImage{"a": imageOf("amd64", layerOf("", file{"a", strings.Repeat("a", 2<<20)}))})
	broken := errors.New("the pipe broke")
	_, err := s.Load(bg, io.MultiReader(bytes.NewReader(b[:1<<20]), iotestErr{broken}), nil)
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want the reader's error", err)
	}
	wantNothing(t, s)
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

func TestLoadWhatTheToolsWrite(t *testing.T) {
	dir := t.TempDir()
	i := imageOf("amd64", layerOf(ocispec.MediaTypeImageLayerGzip, file{"etc/hostname", "tools"}))
	must(t, os.WriteFile(filepath.Join(dir, "in.tar"), ociArchive(i.documents, i.desc), 0o600))
	for _, kind := range []string{"docker-archive", "oci-archive"} {
		out := filepath.Join(dir, kind+".tar")
		tool(t, "skopeo", "copy", "-q", "--insecure-policy", "oci-archive:"+dir+"/in.tar", kind+":"+out+":me/tools:1")
		r, err := os.Open(out)
		must(t, err)
		s := root(t)
		got, err := s.Load(bg, r, nil)
		_ = r.Close()
		if err != nil || len(got) != 1 || got[0].Names[0].Familiar() != "me/tools:1" || read(t, s, got[0], "etc/hostname") != "tools" {
			t.Errorf("%s: %v, %v", kind, got, err)
		}
	}
	layout := filepath.Join(dir, "umoci")
	tool(t, "umoci", "init", "--layout", layout)
	tool(t, "umoci", "new", "--image", layout+":v1")
	tool(t, "umoci", "unpack", "--image", layout+":v1", dir+"/bundle")
	must(t, os.WriteFile(dir+"/bundle/rootfs/hello", []byte("umoci"), 0o600))
	tool(t, "umoci", "repack", "--image", layout+":v1", dir+"/bundle")
	tool(t, "tar", "-C", layout, "-cf", dir+"/umoci.tar", ".")
	r, err := os.Open(dir + "/umoci.tar")
	must(t, err)
	defer r.Close()
	s := root(t)
	got, err := s.Load(bg, r, nil)
	if err != nil || len(got) != 1 || read(t, s, got[0], "hello") != "umoci" {
		t.Errorf("umoci's layout: %v, %v", got, err)
	}
}

func TestImport(t *testing.T) {
	plain := tarOf(file{"etc/", ""}, file{"etc/hostname", "imported"})
	ref, err := reference.Parse("me/rootfs:1")
	must(t, err)
	for _, how := range []string{"", "gzip", "zstd"} {
		s := root(t)
		o := ImportOptions{Ref: ref, Message: "by hand", Config: ocispec.ImageConfig{Cmd: []string{"/bin/sh"}, Env: []string{"A=b"}}}
		img, err := s.Import(bg, stream(compressed(how, plain)), o)
		must(t, err)
		if read(t, s, img, "etc/hostname") != "imported" || img.DiffIDs[0] != digest.FromBytes(plain) || img.Config.Config.Cmd[0] != "/bin/sh" ||
			img.Config.History[0].Comment != "by hand" || img.Names[0] != ref || img.Config.Architecture != HostPlatform().Architecture {
			t.Errorf("%s: got %+v", how, img)
		}
		again, err := s.Import(bg, stream(compressed(how, plain)), ImportOptions{})
		if err != nil || len(again.Names) != 0 || again.ID == img.ID {
			t.Errorf("without a name: %v, %v", again, err)
		}
		before := left(t, s)
		must(t, s.Sweep(bg))
		if after := left(t, s); len(after) != len(before) {
			t.Errorf("a sweep took something of an imported image: %q, then %q", before, after)
		}
		for _, i := range []*Image{img, again} {
			_, err = s.Remove(bg, string(i.ID), false, nil)
			must(t, err)
		}
		wantNothing(t, s)
	}
	for name, c := range map[string]struct {
		b    []byte
		kind errdefs.Kind
	}{
		"empty":     {nil, errdefs.Corrupt},
		"no tar":    {[]byte(strings.Repeat("x", 5000)), errdefs.Corrupt},
		"truncated": {compressed("gzip", plain)[:40], errdefs.Corrupt},
		"leaves":    {tarOf(file{"../../../../../../etc/onggi-was-here", "x"}), errdefs.InvalidArgument},
		"xz":        {[]byte("\xfd7zXZ\x00rest"), errdefs.Unsupported},
	} {
		s := root(t)
		if img, err := s.Import(bg, stream(c.b), ImportOptions{Ref: ref}); !errdefs.Is(err, c.kind) {
			t.Errorf("%s: got %v, %v (%v), want %v", name, img, err, errdefs.KindOf(err), c.kind)
		}
		wantNothing(t, s)
	}
}

func FuzzLoad(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root")
	}
	i := imageOf("amd64", layerOf("", file{"a", "b"}))
	f.Add(ociArchive(i.documents, i.desc))
	f.Add(dockerArchive(map[string][]string{"a": {"x:1"}}, map[string]*testImage{"a": i}))
	f.Add(compressed("gzip", tarOf(file{"manifest.json", "[{}]"})))
	s := openRoot(f, f.TempDir()+"/r")
	f.Fuzz(func(t *testing.T, b []byte) {
		imgs, err := s.Load(bg, bytes.NewReader(b), nil)
		for _, img := range imgs {
			if _, err := s.Remove(bg, string(img.ID), true, nil); err != nil && !errdefs.Is(err, errdefs.NotFound) {
				t.Fatal(err)
			}
		}
		if err != nil && errdefs.Is(err, errdefs.Internal) {
			t.Fatal(err)
		}
		wantNothing(t, s)
	})
}
