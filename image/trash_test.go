package image

import (
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// two loads two images that share a layer, me/one:1 and me/two:1.
func two(t *testing.T) (s *Store, one, other *testImage) {
	t.Helper()
	s = root(t)
	base := layerOf(ocispec.MediaTypeImageLayerGzip, file{"base", strings.Repeat("base", 1000)})
	one = imageOf("amd64", base, layerOf(ocispec.MediaTypeImageLayerGzip, file{"one", "1"}))
	other = imageOf("amd64", base, layerOf(ocispec.MediaTypeImageLayerGzip, file{"two", "2"}))
	for n, i := range map[string]*testImage{"me/one:1": one, "me/two:1": other} {
		_, err := s.Load(bg, stream(ociArchive(i.documents, named(i.desc, ocispec.AnnotationRefName, n))), nil)
		must(t, err)
	}
	return s, one, other
}

func all(*Trash) bool { return true }

func TestDiscardAndRestore(t *testing.T) {
	s, one, _ := two(t)
	must(t, s.Tag("me/one:1", parse(t, "x:1")))
	before := left(t, s)
	names := func() string {
		t.Helper()
		img, err := s.Get(string(one.id))
		if errdefs.Is(err, errdefs.NotFound) {
			return "gone"
		}
		must(t, err)
		var n []string
		for _, r := range img.Names {
			n = append(n, r.Familiar())
		}
		slices.Sort(n)
		return strings.Join(n, " ")
	}
	to := Disposal{ID: NewTrashID(), Command: "rmi me/one:1 x:1", Expires: time.Now().Add(time.Hour)}
	said, err := s.Discard(bg, "me/one:1", false, nil, to)
	if err != nil || len(said) != 1 || names() != "x:1" {
		t.Fatal(said, err, names())
	}
	if said, err = s.Discard(bg, "x:1", false, nil, to); err != nil || names() != "gone" || said[len(said)-1].Deleted != string(one.id) {
		t.Fatal(said, err, names())
	}
	// Nothing of it has left the disk, and a sweep keeps it.
	must(t, s.Sweep(bg))
	after := slices.DeleteFunc(left(t, s), func(p string) bool { return strings.Contains(p, "trash/") })
	if !slices.Equal(before, after) {
		t.Errorf("left %q, was %q", after, before)
	}
	list, err := s.Trash()
	if err != nil || len(list) != 1 || len(list[0].Images) != 2 || list[0].Command != to.Command {
		t.Fatal(list, err)
	}
	got, err := s.Restore(bg, to.ID)
	if err != nil || len(got) != 2 || got[0].Taken || names() != "me/one:1 x:1" {
		t.Fatal(got, err, names())
	}
	if list, err := s.Trash(); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
	if _, err := s.Restore(bg, to.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a second time: %v", err)
	}
	if got := left(t, s); !slices.Equal(got, before) {
		t.Errorf("left %q, was %q", got, before)
	}
}

func TestRestoreOfATakenName(t *testing.T) {
	s, one, other := two(t)
	to := Disposal{ID: NewTrashID(), Expires: time.Now().Add(time.Hour)}
	_, err := s.Discard(bg, "me/one:1", false, nil, to)
	must(t, err)
	must(t, s.Tag("me/two:1", parse(t, "me/one:1")))
	got, err := s.Restore(bg, to.ID)
	if err != nil || len(got) != 1 || !got[0].Taken {
		t.Fatal(got, err)
	}
	img, err := s.Get("me/one:1")
	if err != nil || img.ID != other.id {
		t.Errorf("the name is of %v, %v", img, err)
	}
	if img, err = s.Get(string(one.id)); err != nil || len(img.Names) != 0 {
		t.Errorf("the image is %v, %v", img, err)
	}
}

func TestEmptyTrash(t *testing.T) {
	s, one, other := two(t)
	now := time.Now()
	old := Disposal{ID: NewTrashID(), Expires: now.Add(-time.Second)}
	young := Disposal{ID: NewTrashID(), Expires: now.Add(time.Hour)}
	_, err := s.Discard(bg, "me/one:1", false, nil, old)
	must(t, err)
	_, err = s.Discard(bg, "me/two:1", false, nil, young)
	must(t, err)
	must(t, s.Sweep(bg)) // takes what has expired
	if _, err := s.snapshots.Layer(one.layers[1].diffID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("the layer of an image whose time is over: %v", err)
	}
	for _, l := range other.layers {
		if _, err := s.snapshots.Layer(l.diffID); err != nil {
			t.Errorf("a layer of an image in the trash: %v", err)
		}
	}
	must(t, s.EmptyTrash(bg, all))
	wantNothing(t, s)
}

func TestPrune(t *testing.T) {
	s, one, other := two(t)
	to := Disposal{ID: NewTrashID(), Expires: time.Now().Add(time.Hour)}
	inUse := func(d digest.Digest) bool { return d == other.id }
	said, err := s.Prune(bg, func(*Image) bool { return true }, inUse, &to)
	if err != nil || !slices.Contains(said, Removed{Deleted: string(one.id)}) || slices.Contains(said, Removed{Deleted: string(other.id)}) {
		t.Fatal(said, err)
	}
	_, err = s.Restore(bg, to.ID)
	must(t, err)
	_, err = s.Prune(bg, func(*Image) bool { return true }, nil, nil)
	must(t, err)
	wantNothing(t, s)
}

func TestDamagedTrash(t *testing.T) {
	s, _, _ := two(t)
	to := Disposal{ID: NewTrashID(), Expires: time.Now().Add(time.Hour)}
	_, err := s.Discard(bg, "me/one:1", false, nil, to)
	must(t, err)
	must(t, os.WriteFile(s.trashPath(to.ID), []byte("{torn"), 0o600))
	if _, err := s.Restore(bg, to.ID); !errdefs.Is(err, errdefs.Corrupt) {
		t.Errorf("restoring it: %v", err)
	}
	must(t, s.Sweep(bg))
	if _, err := s.Restore(bg, to.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("after a sweep: %v", err)
	}
	for _, bad := range []string{"", "../x", "0123456789AB", "0123456789abc"} {
		if _, err := s.Restore(bg, bad); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
		if _, err := s.Discard(bg, "me/two:1", false, nil, Disposal{ID: bad}); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestTrashAndPullsAtOnce discards, restores, empties, sweeps, checks and pulls images that share a layer, all at once, in
// several stores on one directory, as processes have them: who has an image has all of it.
func TestTrashAndPullsAtOnce(t *testing.T) {
	first, f := root(t), newFake(t)
	base := layerOf(ocispec.MediaTypeImageLayerGzip, file{"base", strings.Repeat("base", 1000)})
	for _, n := range []string{"0", "1", "2"} {
		f.add("v"+n, imageOf("amd64", base, layerOf(ocispec.MediaTypeImageLayerGzip, file{"n", n})))
	}
	var wg sync.WaitGroup
	for _, n := range []string{"0", "1", "2"} {
		wg.Go(func() {
			s, ref := openRoot(t, first.rootDir()), f.ref(t, "v"+n)
			for range 12 {
				img, err := pull(t, s, ref)
				if err != nil {
					t.Errorf("pull: %v", err)
					return
				}
				to := Disposal{ID: NewTrashID(), Expires: time.Now().Add(time.Hour)}
				if _, err := s.Discard(bg, ref.String(), false, nil, to); err != nil {
					t.Errorf("discard: %v", err)
				}
				if _, err := s.Restore(bg, to.ID); err != nil {
					if !errdefs.Is(err, errdefs.NotFound) { // somebody emptied the trash
						t.Errorf("restore: %v", err)
					}
					continue
				}
				for i, d := range img.DiffIDs {
					if _, err := s.snapshots.Layer(d); err != nil {
						t.Errorf("the image lost its layer %d: %v", i, err)
					}
				}
				if got := read(t, s, img, "n"); got != n {
					t.Errorf("it says %q, want %q", got, n)
				}
			}
		})
	}
	for _, f := range []func(*Store) error{
		func(s *Store) error { return s.Sweep(bg) },
		func(s *Store) error { return s.EmptyTrash(bg, all) },
		func(s *Store) error { _, err := s.Check(bg, CheckOptions{}); return err },
	} {
		wg.Go(func() {
			s := openRoot(t, first.rootDir())
			for range 12 {
				if err := f(s); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	_, err := first.Prune(bg, func(*Image) bool { return true }, nil, nil)
	must(t, err)
	must(t, first.EmptyTrash(bg, all))
	must(t, first.Sweep(bg))
	wantNothing(t, first)
}
