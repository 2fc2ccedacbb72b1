package image

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// TestPowerLoss records every block that load, import, pull, commit, tag, discard, undo, removal and the emptying of the trash write to a
// disk with ext4, and cuts the power after each of many of them: what was sent before is on the disk, but of what was sent
// after the last flush a random part only. Then the file system recovers its journal and the store is opened: every
// operation that had been acknowledged is as it was left, the images are whole to the byte, and a sweep leaves no orphan.
//
// ONGGI_TEST_POWERCUTS says how many cuts; the default is what a test run has time for.
func TestPowerLoss(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if os.Getenv("ONGGI_TEST_POWERLOSS") == "" { // the mounts are in a namespace that ends with this child
		if _, err := exec.LookPath("mkfs.ext4"); err != nil {
			t.Skip("no mkfs.ext4")
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestPowerLoss$", "-test.v")
		cmd.Env = append(os.Environ(), "ONGGI_TEST_POWERLOSS=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if strings.Contains(string(out), "--- SKIP") {
			t.Skip(string(out))
		}
		t.Log(string(out))
		return
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	cuts := 40
	if n, err := strconv.Atoi(os.Getenv("ONGGI_TEST_POWERCUTS")); err == nil {
		cuts = n
	}
	blank := filepath.Join(t.TempDir(), "blank")
	must(t, os.WriteFile(blank, nil, 0o600))
	must(t, os.Truncate(blank, 24<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", blank).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	base, err := os.ReadFile(blank)
	must(t, err)

	// The recording.
	d := newDisk(t, append([]byte(nil), base...))
	d.watch = true // from before the mount, which says in the superblock that the journal has to be recovered
	at := t.TempDir()
	if err := d.mount(at); err != nil {
		t.Skipf("no loop device can be mounted here: %v", err)
	}
	common := layerOf(ocispec.MediaTypeImageLayerGzip, file{"base", strings.Repeat("base", 30000)}, file{"d/e/f", "deep"})
	// The blob of wide is not kept: that it goes must not be on the disk before the layer is.
	one := imageOf("amd64", common, layerOf(ocispec.MediaTypeImageLayerGzip, file{"one", strings.Repeat("1", 50000)}), wide(ocispec.MediaTypeImageLayerGzip))
	other := imageOf("amd64", common, layerOf(ocispec.MediaTypeImageLayerZstd, file{"two", strings.Repeat("2", 50000)}))
	f := newFake(t)
	f.add("v1", imageOf("amd64", common, layerOf(ocispec.MediaTypeImageLayerGzip, file{"pulled", strings.Repeat("p", 60000)})))
	ref := f.ref(t, "v1")
	s := openRoot(t, filepath.Join(at, "root"))
	load := func(i *testImage, name string) func() error {
		return func() error {
			_, err := s.Load(bg, stream(ociArchive(i.documents, named(i.desc, ocispec.AnnotationRefName, name))), nil)
			return err
		}
	}
	first, second := Disposal{ID: "00000000000a", Expires: time.Now().Add(time.Hour)}, Disposal{ID: "00000000000b", Expires: time.Now().Add(time.Hour)}
	discard := func(name string, to Disposal) func() error {
		return func() error { _, err := s.Discard(bg, name, false, nil, to); return err }
	}
	// Each operation, and the names that there are after it.
	operations := []struct {
		name  string
		do    func() error
		names string
	}{
		{"load one", load(one, "one:1"), "one:1"},
		{"load two", load(other, "two:1"), "one:1 two:1"},
		{"tag", func() error { return s.Tag("one:1", parse(t, "tagged:1")) }, "one:1 tagged:1 two:1"},
		{"discard two", discard("two:1", first), "one:1 tagged:1"},
		{"undo", func() error { _, err := s.Restore(bg, first.ID); return err }, "one:1 tagged:1 two:1"},
		{"import", func() error {
			_, err := s.Import(bg, stream(tarOf(file{"imported", strings.Repeat("i", 40000)})), ImportOptions{Ref: parse(t, "imported:1")})
			return err
		}, "imported:1 one:1 tagged:1 two:1"},
		{"discard imported", discard("imported:1", second), "one:1 tagged:1 two:1"},
		{"empty", func() error { return s.EmptyTrash(bg, func(*Trash) bool { return true }) }, "one:1 tagged:1 two:1"},
		{"remove", func() error { _, err := s.Remove(bg, "two:1", false, nil); return err }, "one:1 tagged:1"},
		{"pull", func() error { _, err := pull(t, s, ref); return err }, ref.Familiar() + " one:1 tagged:1"},
		{"commit", func() error {
			img, err := s.Get("one:1")
			if err != nil {
				return err
			}
			_, err = s.Commit(bg, img, bytes.NewReader(tarOf(file{"change", strings.Repeat("c", 30000)})), CommitOptions{Ref: parse(t, "zcommit:1")})
			return err
		}, ref.Familiar() + " one:1 tagged:1 zcommit:1"},
	}
	acked := []int{d.at()} // acked[n]: how far the log was when n operations had returned
	for _, o := range operations {
		if err := o.do(); err != nil {
			t.Fatalf("%s: %v", o.name, err)
		}
		acked = append(acked, d.at())
	}
	unix.Sync()
	must(t, unix.Unmount(at, 0))
	log := d.log
	d.close()
	t.Logf("%d operations made %d writes and flushes", len(operations), len(log))

	// The cuts.
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 1))
	check := t.TempDir()
	for n := range cuts {
		cut := n * len(log) / cuts
		if cuts < len(log) {
			cut += random.IntN(max(1, len(log)/cuts))
		}
		cut = min(cut, len(log))
		data := append([]byte(nil), base...)
		flushed := 0
		for i, c := range log[:cut] {
			if c.data == nil {
				flushed = i
			}
		}
		lost := 0
		for i, c := range log[:cut] {
			if i > flushed && n%2 == 1 && random.IntN(3) == 0 { // each second cut finds a disk with a cache of its own
				lost++
				continue
			}
			copy(data[c.off:], c.data)
		}
		done := 0
		for done+1 < len(acked) && acked[done+1] <= cut {
			done++
		}
		where := fmt.Sprintf("seed %d, cut %d of %d with %d writes lost, after %d operations", seed, cut, len(log), lost, done)
		func() {
			d := newDisk(t, data)
			defer d.close()
			if err := d.mount(check); err != nil {
				t.Errorf("%s: the file system does not mount: %v", where, err)
				return
			}
			defer func() { must(t, unix.Unmount(check, 0)) }()
			if testing.Verbose() {
				t.Log(where)
			}
			s := openRoot(t, filepath.Join(check, "root"))
			before, after := "", operations[min(done, len(operations)-1)].names
			if done > 0 {
				before = operations[done-1].names
			}
			if got := namesOf(t, s); got != before && got != after {
				t.Errorf("%s: there are %q, want %q or %q", where, got, before, after)
			}
			checkWhole(t, s, where)
			if trash, err := s.Trash(); err != nil {
				t.Errorf("%s: the trash: %v", where, err)
			} else if done == 4 && namesOf(t, s) == before && (len(trash) != 1 || len(trash[0].Entries) != 1) {
				t.Errorf("%s: what was discarded cannot be brought back: %+v", where, trash)
			}
			must(t, s.recover(bg))
			must(t, s.Sweep(bg))
			r, err := s.Check(bg, CheckOptions{})
			if err != nil {
				t.Errorf("%s: check: %v", where, err)
				return
			}
			for _, p := range r.Problems {
				t.Errorf("%s: %+v", where, p)
			}
			for _, i := range []*testImage{one, other} { // and it can be gone on with
				_, err := s.Load(bg, stream(ociArchive(i.documents, named(i.desc, ocispec.AnnotationRefName, "again:1"))), nil)
				if err != nil {
					t.Errorf("%s: going on: %v", where, err)
				}
			}
		}()
	}
}

// namesOf lists all names, sorted.
func namesOf(t *testing.T, s *Store) string {
	t.Helper()
	idx, err := s.readIndex()
	if errdefs.Is(err, errdefs.Corrupt) {
		t.Error(err)
		return "corrupt"
	}
	must(t, err)
	var names []string
	for _, img := range idx.images() {
		for _, n := range img.Names {
			names = append(names, n.Familiar())
		}
		if len(img.Names) == 0 {
			names = append(names, "<none>")
		}
	}
	return strings.Join(sorted(names), " ")
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}
