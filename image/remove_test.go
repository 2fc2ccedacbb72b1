package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func parse(t testing.TB, s string) reference.Reference {
	t.Helper()
	r, err := reference.Parse(s)
	must(t, err)
	return r
}

func TestGetByAllItsNames(t *testing.T) {
	s, f := root(t), newFake(t)
	a, b := twoLayers("amd64"), imageOf("amd64", layerOf("", file{"b", "b"}))
	f.add("v1", a)
	f.add("v2", b)
	img, err := pull(t, s, f.ref(t, "v1"))
	must(t, err)
	other, err := pull(t, s, f.ref(t, "v2"))
	must(t, err)
	must(t, s.Tag(string(img.ID), parse(t, "me/jar:1")))
	must(t, s.Tag("me/jar:1", parse(t, "abc")))
	repo := f.ref(t, "v1").Repository()
	for _, n := range []string{
		string(img.ID), img.ID.Encoded(), img.ID.Encoded()[:12], "sha256:" + img.ID.Encoded()[:20], "me/jar:1", "docker.io/me/jar:1",
		f.ref(t, "v1").String(), repo + "@" + string(img.Manifest.Digest), "me/jar@" + string(img.Manifest.Digest), "abc",
	} {
		if got, err := s.Get(n); err != nil || got.ID != img.ID || len(got.Names) != 3 {
			t.Errorf("Get(%q) = %v, %v", n, got, err)
		}
	}
	for n, kind := range map[string]errdefs.Kind{
		"nothing": errdefs.NotFound, "ab": errdefs.NotFound, "me/jar": errdefs.NotFound, "me/jar@" + string(other.Manifest.Digest): errdefs.NotFound,
		"Upper": errdefs.InvalidArgument, "": errdefs.InvalidArgument, strings.Repeat("0", 64): errdefs.NotFound,
	} {
		if got, err := s.Get(n); !errdefs.Is(err, kind) {
			t.Errorf("Get(%q) = %v, %v; want %v", n, got, err, kind)
		}
	}
	if err := s.Tag("abc", reference.Reference{Domain: "a.b", Path: "c", Digest: img.ID}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a digest as a tag: %v", err)
	}
	if err := s.Tag("nothing", parse(t, "x")); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("tag of nothing: %v", err)
	}
	// A name that moves leaves a dangling image behind.
	must(t, s.Tag(string(img.ID), f.ref(t, "v2")))
	if got, err := s.Get(string(other.ID)); err != nil || len(got.Names) != 0 {
		t.Errorf("the dangling image: %v, %v", got, err)
	}
}

func TestAmbiguousID(t *testing.T) {
	mk := func(n int) entry {
		d := digest.Digest("sha256:abc" + fmt.Sprintf("%061x", n))
		return entry{desc: ocispec.Descriptor{Digest: d}, id: d}
	}
	idx := index{mk(1), mk(2)}
	if _, err := idx.find("abc", HostPlatform()); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "several images") {
		t.Errorf("got %v", err)
	}
}

func TestRemove(t *testing.T) {
	base := layerOf(ocispec.MediaTypeImageLayerGzip, file{"base", strings.Repeat("base", 1000)})
	one := imageOf("amd64", base, layerOf(ocispec.MediaTypeImageLayerGzip, file{"one", "1"}))
	two := imageOf("amd64", base, layerOf(ocispec.MediaTypeImageLayerGzip, file{"two", "2"}))
	used := func(i *testImage) func(digest.Digest) bool { return func(d digest.Digest) bool { return d == i.id } }
	type want struct {
		said []string
		kind errdefs.Kind
		ids  []digest.Digest // that are there afterwards
	}
	for name, c := range map[string]struct {
		arg   string
		tags  []string // of one, besides me/one:1
		force bool
		inUse func(digest.Digest) bool
		want  want
	}{
		"the only name":            {"me/one:1", nil, false, nil, want{[]string{"-me/one:1", "-me/one@M", "+ID", "+top"}, 0, []digest.Digest{two.id}}},
		"one of two names":         {"me/one:1", []string{"x:1"}, false, used(one), want{[]string{"-me/one:1"}, 0, []digest.Digest{one.id, two.id}}},
		"by id":                    {"ID", nil, false, nil, want{[]string{"-me/one:1", "-me/one@M", "+ID", "+top"}, 0, []digest.Digest{two.id}}},
		"by id with two names":     {"ID", []string{"x:1"}, false, nil, want{nil, errdefs.Conflict, []digest.Digest{one.id, two.id}}},
		"by id with two, force":    {"ID", []string{"x:1"}, true, nil, want{[]string{"-me/one:1", "-me/one@M", "-x:1", "-x@M", "+ID", "+top"}, 0, []digest.Digest{two.id}}},
		"in use":                   {"me/one:1", nil, false, used(one), want{nil, errdefs.Conflict, []digest.Digest{one.id, two.id}}},
		"in use by id":             {"ID", nil, false, used(one), want{nil, errdefs.Conflict, []digest.Digest{one.id, two.id}}},
		"in use, force":            {"me/one:1", nil, true, used(one), want{[]string{"-me/one:1", "-me/one@M"}, 0, []digest.Digest{one.id, two.id}}},
		"another one in use":       {"me/one:1", nil, false, used(two), want{[]string{"-me/one:1", "-me/one@M", "+ID", "+top"}, 0, []digest.Digest{two.id}}},
		"nothing":                  {"me/none:1", nil, true, nil, want{nil, errdefs.NotFound, []digest.Digest{one.id, two.id}}},
		"two tags of a repository": {"ID", []string{"me/one:2"}, false, nil, want{nil, errdefs.Conflict, []digest.Digest{one.id, two.id}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := root(t)
			for n, i := range map[string]*testImage{"me/one:1": one, "me/two:1": two} {
				_, err := s.Load(bg, stream(ociArchive(i.documents, named(i.desc, ocispec.AnnotationRefName, n))), nil)
				must(t, err)
			}
			for _, n := range c.tags {
				must(t, s.Tag("me/one:1", parse(t, n)))
			}
			arg := strings.ReplaceAll(c.arg, "ID", one.id.Encoded()[:12])
			said, err := s.Remove(bg, arg, c.force, c.inUse)
			if errdefs.KindOf(err) != c.want.kind {
				t.Errorf("got %v, want %v", err, c.want.kind)
			}
			var got []string
			for _, r := range said {
				x := "-" + r.Untagged
				if r.Deleted != "" {
					x = "+" + r.Deleted
				}
				x = strings.NewReplacer(string(one.id), "ID", string(one.desc.Digest), "M", string(one.layers[1].diffID), "top").Replace(x)
				got = append(got, x)
			}
			if !slices.Equal(got, c.want.said) {
				t.Errorf("said %q, want %q", got, c.want.said)
			}
			all, err := s.List()
			must(t, err)
			var ids []digest.Digest
			for _, i := range all {
				ids = append(ids, i.ID)
				whole, err := s.Get(string(i.ID))
				must(t, err)
				for _, d := range whole.DiffIDs {
					if _, err := s.snapshots.Layer(d); err != nil {
						t.Error(err)
					}
				}
			}
			slices.Sort(ids)
			slices.Sort(c.want.ids)
			if !slices.Equal(ids, c.want.ids) {
				t.Errorf("there are %v, want %v", ids, c.want.ids)
			}
			for _, i := range ids {
				_, err := s.Remove(bg, string(i), true, nil)
				must(t, err)
			}
			wantNothing(t, s)
		})
	}
}

func TestSweepKeepsWhatOthersWroteIntoTheLayout(t *testing.T) {
	s := root(t)
	dir := t.TempDir()
	i := twoLayers("amd64")
	must(t, os.WriteFile(filepath.Join(dir, "in.tar"), ociArchive(i.documents, i.desc), 0o600))
	_, err := s.Load(bg, stream(ociArchive(i.documents, named(i.desc, ocispec.AnnotationRefName, "ours:1"))), nil)
	must(t, err)
	other := imageOf("amd64", layerOf(ocispec.MediaTypeImageLayerGzip, file{"theirs", "x"}))
	must(t, os.WriteFile(filepath.Join(dir, "in.tar"), ociArchive(other.documents, other.desc), 0o600))
	tool(t, "skopeo", "copy", "-q", "--insecure-policy", "oci-archive:"+dir+"/in.tar", "oci:"+s.content.Dir()+":theirs:1")
	must(t, s.Sweep(bg))
	if _, err := s.content.ReadAll(other.layers[0].desc, 1<<20); err != nil {
		t.Errorf("the sweep took another program's blob: %v", err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 {
		t.Errorf("listed %v, %v", all, err)
	}
	if img, err := s.Get("ours:1"); err != nil || img.ID != i.id {
		t.Errorf("ours: %v, %v", img, err)
	}
	must(t, s.Tag("ours:1", parse(t, "ours:2")))
	out := tool(t, "skopeo", "inspect", "oci:"+s.content.Dir()+":theirs:1")
	if !strings.Contains(out, string(other.layers[0].desc.Digest)) {
		t.Errorf("after a change of ours skopeo sees %s", out)
	}
}

func TestSweepTakesOrphans(t *testing.T) {
	s := root(t)
	_, err := s.content.Put(bg, "", []byte("orphan"))
	must(t, err)
	_, err = s.snapshots.Unpack(bg, "", stream(tarOf(file{"a", "b"})))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(s.dir, "leases", "dead"), []byte(someDigest+"\nsha256:torn"), 0o600))
	must(t, os.WriteFile(s.indexPath()+".new", []byte("torn"), 0o600))
	must(t, s.Sweep(bg))
	wantNothing(t, s)
}

func TestALivingLeaseIsRespected(t *testing.T) {
	s := root(t)
	l, err := s.newLease(bg)
	must(t, err)
	desc, err := s.content.Put(bg, "", []byte("coming"))
	must(t, err)
	must(t, l.add(bg, desc.Digest))
	must(t, s.Sweep(bg))
	if _, err := s.content.Stat(desc.Digest); err != nil {
		t.Errorf("swept: %v", err)
	}
	must(t, l.drop(bg))
	wantNothing(t, s)
}

func TestOneThousandImages(t *testing.T) {
	s := root(t)
	i := twoLayers("amd64")
	img, err := s.Load(bg, stream(ociArchive(i.documents, named(i.desc, ocispec.AnnotationRefName, "base:1"))), nil)
	must(t, err)
	must(t, s.change(bg, func(idx index) (index, error) {
		for n := range 1000 {
			e := idx[0]
			e.id = digest.FromString(fmt.Sprint(n))
			e.desc.Digest = e.id
			e.name = fmt.Sprintf("docker.io/library/n%d:latest", n)
			e.stamp()
			idx = append(idx, e)
		}
		return idx, nil
	}))
	all, err := s.List()
	if err != nil || len(all) != 1001 {
		t.Errorf("%d images, %v", len(all), err)
	}
	if got, err := s.Get("base:1"); err != nil || got.ID != img[0].ID {
		t.Errorf("got %v, %v", got, err)
	}
}

func BenchmarkList1000(b *testing.B) {
	s := thousand(b)
	for b.Loop() {
		if all, err := s.List(); err != nil || len(all) < 1000 {
			b.Fatal(len(all), err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := many(b, n)
			for b.Loop() {
				if _, err := s.Get("base:1"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func thousand(b *testing.B) *Store { return many(b, 1000) }

func many(b *testing.B, n int) *Store {
	b.Helper()
	s := root(b)
	i := twoLayers("amd64")
	_, err := s.Load(bg, stream(ociArchive(i.documents, named(i.desc, ocispec.AnnotationRefName, "base:1"))), nil)
	must(b, err)
	must(b, s.change(bg, func(idx index) (index, error) {
		for n := range n {
			e := idx[0]
			e.id = digest.FromString(fmt.Sprint(n))
			e.desc.Digest = e.id
			e.name = fmt.Sprintf("docker.io/library/n%d:latest", n)
			e.stamp()
			idx = append(idx, e)
		}
		return idx, nil
	}))
	return s
}

// TestFaultsAndKills builds this test with the faults tag and walks every named step of pull, load, import and remove:
// first with an error, then with SIGKILL, before and after the step.
func TestFaultsAndKills(t *testing.T) {
	if os.Getenv("ONGGI_TEST_FAULTS") != "" {
		faultChild(t)
		return
	}
	if testing.Short() {
		t.Skip("builds a second test binary")
	}
	bin := filepath.Join(t.TempDir(), "image.test")
	if out, err := exec.Command("go", "test", "-c", "-tags", "faults", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Skipf("the test cannot be built with the faults tag: %v\n%s", err, out)
	}
	f := newFake(t)
	base := layerOf(ocispec.MediaTypeImageLayerGzip, file{"base", strings.Repeat("base", 5000)})
	i := imageOf("amd64", base, layerOf(ocispec.MediaTypeImageLayerZstd, file{"top", "top"}))
	f.add("v1", i)
	idx, _ := indexOf(i)
	f.put("multi", ocispec.MediaTypeImageIndex, idx)
	keep := imageOf("amd64", base, layerOf(ocispec.MediaTypeImageLayerGzip, file{"keep", "keep"}))
	f.add("keep", keep)
	archive := filepath.Join(t.TempDir(), "in.tar")
	must(t, os.WriteFile(archive, dockerArchive(map[string][]string{"a": {"loaded:1"}}, map[string]*testImage{"a": imageOf("amd64", base, layerOf("", file{"l", strings.Repeat("l", 2<<20)}))}), 0o600))

	reg := realRegistry(t, "")
	failed, killed := 0, 0
	defer func() { t.Logf("%d steps failed, %d kills", failed, killed) }()
	for _, op := range []string{"pull", "load", "import", "commit", "push", "remove", "discard", "undo", "empty"} {
		run := func(dir, fault, names string) (string, error) {
			cmd := exec.Command(bin, "-test.run=^TestFaultsAndKills$")
			cmd.Env = append(os.Environ(), "ONGGI_TEST_FAULTS="+op, "ONGGI_TEST_ROOT="+dir, "ONGGI_TEST_REF="+f.ref(t, "multi").String(),
				"ONGGI_TEST_KEEP="+f.ref(t, "keep").String(), "ONGGI_TEST_ARCHIVE="+archive, "ONGGI_TEST_PUSH="+reg, "ONGGI_TEST_FAULT="+fault, "ONGGI_TEST_STEPS="+names)
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
		names := filepath.Join(t.TempDir(), "names")
		must(t, os.WriteFile(names, nil, 0o600))
		if out, err := run(filepath.Join(t.TempDir(), "r"), "", names); err != nil {
			t.Fatalf("%s: %v\n%s", op, err, out)
		}
		b, err := os.ReadFile(names)
		must(t, err)
		steps := strings.Fields(string(b))
		slices.Sort(steps)
		steps = slices.Compact(steps)
		if len(steps) < 2 {
			t.Errorf("%s has only the steps %v", op, steps)
		}
		for _, step := range steps {
			for _, at := range []string{"", "@after"} {
				for _, what := range []string{"error", "kill"} {
					dir := filepath.Join(t.TempDir(), "r")
					fault := step + at + "=" + what
					out, err := run(dir, fault, "")
					if what == "kill" {
						killed++
					} else {
						failed++
					}
					if what == "error" && err != nil {
						t.Errorf("%s with %s: %v\n%s", op, fault, err, out)
						continue
					}
					s := openRoot(t, dir)
					if what == "kill" {
						var exit *exec.ExitError
						if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
							t.Errorf("%s with %s did not die: %v\n%s", op, fault, err, out)
						}
						if err := s.recover(bg); err != nil {
							t.Errorf("%s with %s: recover: %v", op, fault, err)
						}
						checkWhole(t, s, op+" with "+fault)
						must(t, s.Sweep(bg))
					}
					checkWhole(t, s, op+" with "+fault)
					img, err := s.Get(f.ref(t, "keep").String())
					if err != nil || read(t, s, img, "base") == "" || read(t, s, img, "keep") != "keep" {
						t.Errorf("%s with %s: an image that was there is lost: %v", op, fault, err)
					}
					all, err := s.List()
					must(t, err)
					for _, img := range all {
						_, err := s.Remove(bg, string(img.ID), true, nil)
						must(t, err)
					}
					if what == "kill" && (op == "discard" || op == "undo") {
						trash, err := s.Trash()
						must(t, err)
						if len(all) < 2 && (len(trash) != 1 || len(trash[0].Entries) != 1) {
							t.Errorf("%s with %s: the image is neither here nor in the trash: %v", op, fault, trash)
						}
					}
					must(t, s.EmptyTrash(bg, func(*Trash) bool { return true }))
					wantNothing(t, s)
				}
			}
		}
	}
}

// checkWhole: every image that is listed can be read and has all its layers.
func checkWhole(t *testing.T, s *Store, what string) {
	t.Helper()
	all, err := s.List()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	for _, x := range all {
		img, err := s.Get(string(x.ID))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for _, d := range img.DiffIDs {
			if _, err := s.snapshots.Layer(d); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// faultChild is one operation with one fault. It fails when the operation leaves something after an error.
func faultChild(t *testing.T) {
	s := openRoot(t, os.Getenv("ONGGI_TEST_ROOT"))
	_, err := pull(t, s, parse(t, os.Getenv("ONGGI_TEST_KEEP")))
	must(t, err)
	ref := parse(t, os.Getenv("ONGGI_TEST_REF"))
	to := Disposal{ID: "0123456789ab", Command: "rmi", Expires: time.Now().Add(time.Hour)}
	switch os.Getenv("ONGGI_TEST_FAULTS") {
	case "remove", "discard":
		_, err = pull(t, s, ref)
		must(t, err)
	case "undo", "empty":
		_, err = pull(t, s, ref)
		must(t, err)
		_, err = s.Discard(bg, ref.String(), false, nil, to)
		must(t, err)
	case "push": // an image with plain layers, to a repository that is new
		r, err := os.Open(os.Getenv("ONGGI_TEST_ARCHIVE"))
		must(t, err)
		defer r.Close()
		_, err = s.Load(bg, r, nil)
		must(t, err)
		ref = parse(t, fmt.Sprintf("%s/r%d/app:1", os.Getenv("ONGGI_TEST_PUSH"), time.Now().UnixNano()))
		must(t, s.Tag("loaded:1", ref))
	}
	before := left(t, s)
	fault := os.Getenv("ONGGI_TEST_FAULT")
	must(t, os.Setenv("ONGGI_FAULT", fault))
	must(t, os.Setenv("ONGGI_FAULT_NAMES", os.Getenv("ONGGI_TEST_STEPS")))
	switch os.Getenv("ONGGI_TEST_FAULTS") {
	case "pull":
		_, err = pull(t, s, ref)
	case "load", "import":
		r, oerr := os.Open(os.Getenv("ONGGI_TEST_ARCHIVE"))
		must(t, oerr)
		defer r.Close()
		if os.Getenv("ONGGI_TEST_FAULTS") == "load" {
			_, err = s.Load(bg, r, nil)
		} else {
			_, err = s.Import(bg, r, ImportOptions{Ref: parse(t, "imported:1")})
		}
	case "commit":
		var base *Image
		base, err = s.Get(os.Getenv("ONGGI_TEST_KEEP"))
		must(t, err)
		_, err = s.Commit(bg, base, bytes.NewReader(tarOf(file{"new", "new"}, file{".wh.keep", ""})), CommitOptions{Ref: parse(t, "made:1")})
	case "push":
		c := anonymous(patient)
		defer c.Close()
		_, err = s.Push(bg, ref, PushOptions{Registry: c})
	case "remove":
		_, err = s.Remove(bg, ref.String(), false, nil)
	case "discard":
		_, err = s.Discard(bg, ref.String(), false, nil, to)
	case "undo":
		_, err = s.Restore(bg, to.ID)
	case "empty":
		err = s.EmptyTrash(bg, func(*Trash) bool { return true })
	}
	must(t, os.Setenv("ONGGI_FAULT", ""))
	must(t, os.Setenv("ONGGI_FAULT_NAMES", ""))
	if (err != nil) != (fault != "") {
		t.Fatalf("the operation with the fault %q ended with %v", fault, err)
	}
	if err == nil {
		return
	}
	after := left(t, s)
	if os.Getenv("ONGGI_TEST_FAULTS") == "remove" {
		checkWhole(t, s, fault)
		must(t, s.recover(bg)) // either all of it is there, or nothing
		_, gerr := s.Get(ref.String())
		after = left(t, s)
		if gerr == nil && !slices.Equal(before, after) || gerr != nil && len(after) >= len(before) {
			t.Errorf("with %s: was %q, is %q (%v)", fault, before, after, gerr)
		}
		return
	}
	switch os.Getenv("ONGGI_TEST_FAULTS") {
	case "undo", "empty", "push": // what has been done of them stays, and can be done again
		checkWhole(t, s, fault)
		return
	}
	if !slices.Equal(before, after) {
		t.Errorf("with %s: left %q, was %q", fault, after, before)
	}
}
