package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var all = ReadOptions{Tail: -1, Stdout: true, Stderr: true}

type piece struct {
	s Stream
	p string
}

// write makes a log of pieces, one nanosecond apart from time 1000 on.
func write(t testing.TB, path string, maxSize int64, maxFiles int, ps ...piece) {
	t.Helper()
	w, err := Create(path, maxSize, maxFiles)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range ps {
		if err := w.Append(p.s, time.Unix(0, int64(1000+i)), []byte(p.p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(true); err != nil {
		t.Fatal(err)
	}
}

// lines reads a log as "1@1000:text" strings.
func lines(t testing.TB, path string, o ReadOptions) []string {
	t.Helper()
	var got []string
	err := Read(context.Background(), path, o, func(l Line) error {
		got = append(got, fmt.Sprintf("%d@%d:%s", l.Stream, l.Time.UnixNano(), l.Data))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLinesAreJoinedPerStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, 0, 0,
		piece{Stdout, "one\ntw"}, piece{Stderr, "err"}, piece{Stdout, "o\nthree\n\x00\xff"}, piece{Stderr, "or\n"}, piece{Stdout, "\nend"}, piece{Stderr, "last"})
	for _, c := range []struct {
		name string
		o    ReadOptions
		want []string
	}{
		{"all", all, []string{"1@1000:one\n", "1@1000:two\n", "1@1002:three\n", "2@1001:error\n", "1@1002:\x00\xff\n", "1@1004:end", "2@1005:last"}},
		{"stdout", ReadOptions{Tail: -1, Stdout: true}, []string{"1@1000:one\n", "1@1000:two\n", "1@1002:three\n", "1@1002:\x00\xff\n", "1@1004:end"}},
		{"stderr", ReadOptions{Tail: -1, Stderr: true}, []string{"2@1001:error\n", "2@1005:last"}},
		{"neither", ReadOptions{Tail: -1}, nil},
		{"tail 0", ReadOptions{Tail: 0, Stdout: true, Stderr: true}, nil},
		{"tail 1", ReadOptions{Tail: 1, Stdout: true, Stderr: true}, []string{"2@1005:last"}},
		{"tail 3", ReadOptions{Tail: 3, Stdout: true, Stderr: true}, []string{"1@1002:\x00\xff\n", "1@1004:end", "2@1005:last"}},
		{"tail 4", ReadOptions{Tail: 4, Stdout: true, Stderr: true}, []string{"2@1001:error\n", "1@1002:\x00\xff\n", "1@1004:end", "2@1005:last"}},
		{"tail 2 stdout", ReadOptions{Tail: 2, Stdout: true}, []string{"1@1002:\x00\xff\n", "1@1004:end"}},
		{"tail 99", ReadOptions{Tail: 99, Stdout: true, Stderr: true}, []string{"1@1000:one\n", "1@1000:two\n", "1@1002:three\n", "2@1001:error\n", "1@1002:\x00\xff\n", "1@1004:end", "2@1005:last"}},
		{"since", ReadOptions{Tail: -1, Stdout: true, Stderr: true, Since: time.Unix(0, 1002)}, []string{"1@1002:three\n", "1@1002:\x00\xff\n", "1@1004:end", "2@1005:last"}},
		{"until", ReadOptions{Tail: -1, Stdout: true, Stderr: true, Until: time.Unix(0, 1001)}, []string{"1@1000:one\n", "1@1000:two\n", "2@1001:error\n"}},
	} {
		t.Run(c.name, func(t *testing.T) { same(t, lines(t, path, c.o), c.want) })
	}
}

// TestTailIsASuffix checks every n on random logs over several files against the whole reading.
func TestTailIsASuffix(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	for round := 0; round < 30; round++ {
		path := filepath.Join(t.TempDir(), "log")
		var ps []piece
		for i := 0; i < 60; i++ {
			b := make([]byte, rnd.Intn(400))
			for j := range b {
				b[j] = "ab\n"[rnd.Intn(3)]
				if rnd.Intn(3) > 0 {
					b[j] = 'x'
				}
			}
			ps = append(ps, piece{Stream(1 + rnd.Intn(2)), string(b)})
		}
		write(t, path, minMaxSize, 1+rnd.Intn(5), ps...)
		for _, o := range []ReadOptions{all, {Tail: -1, Stdout: true}, {Tail: -1, Stderr: true}} {
			whole := lines(t, path, o)
			// Incomplete last lines come at the end of the reading, but are counted where they stand: leave them out.
			partial := 0
			for _, l := range whole {
				if !strings.HasSuffix(l, "\n") {
					partial++
				}
			}
			for n := partial; n < len(whole)+2; n += 1 + rnd.Intn(5) {
				o.Tail = n
				got := lines(t, path, o)
				want := whole[max(0, len(whole)-n):]
				if len(got) != len(want) {
					t.Fatalf("round %d tail %d: got %d lines, want %d", round, n, len(got), len(want))
				}
				if partial == 0 {
					same(t, got, want)
				}
			}
		}
	}
}

func TestRotationIsBounded(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	w, err := Create(path, 10000, 3)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 1000; i++ {
		if err := w.Append(Stdout, time.Now(), fmt.Appendf(nil, "line %d %s\n", i, strings.Repeat("x", 100))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Append(Stdout, time.Now(), bytes.Repeat([]byte("y"), 100000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(false); err != nil {
		t.Fatal(err)
	}
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(es) != 3 {
		t.Errorf("got %d files, want 3", len(es))
	}
	for _, e := range es {
		if st, _ := e.Info(); st.Size() > 10000 || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v; want at most 10000, 0600", e.Name(), st.Size(), st.Mode())
		}
	}
	// A smaller limit of later removes what is beyond it.
	write(t, path, 10000, 2)
	if _, err := os.Stat(path + ".2"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("log.2 after max-file=2: got %v, want none", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path  string
		size  int64
		files int
	}{
		{"small", 100, 3}, {"none", 0, -1}, {"missing/dir", 0, 0}, {"link", 0, 0}, {".", 0, 0},
	} {
		if w, err := Create(filepath.Join(dir, c.path), c.size, c.files); err == nil {
			t.Errorf("Create(%s, %d, %d) succeeded", c.path, c.size, c.files)
			_ = w.Close(false)
		}
	}
}

func TestTornAndDamaged(t *testing.T) {
	build := func(t *testing.T) (string, []byte) {
		path := filepath.Join(t.TempDir(), "log")
		write(t, path, 0, 0, piece{Stdout, "one\n"}, piece{Stdout, "two\n"}, piece{Stdout, "tri\n"})
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return path, b
	}
	t.Run("torn at every byte", func(t *testing.T) {
		path, b := build(t)
		for n := 0; n < len(b); n++ {
			if err := os.WriteFile(path, b[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			whole := []string{"1@1000:one\n", "1@1001:two\n", "1@1002:tri\n"}[:n/(overhead+4)]
			same(t, lines(t, path, all), whole)
			tail := all
			tail.Tail = 1
			same(t, lines(t, path, tail), whole[max(0, len(whole)-1):])
			// The writer cuts it off and goes on.
			write(t, path, 0, 0, piece{Stderr, "on\n"})
			same(t, lines(t, path, all), append(whole[:len(whole):len(whole)], "2@1000:on\n"))
		}
	})
	t.Run("every byte damaged", func(t *testing.T) {
		path, b := build(t)
		for i := range b {
			c := bytes.Clone(b)
			c[i] ^= 0x40
			if err := os.WriteFile(path, c, 0o600); err != nil {
				t.Fatal(err)
			}
			whole := []string{"1@1000:one\n", "1@1001:two\n", "1@1002:tri\n"}
			hurt := min(i/(overhead+4), 2)
			want := append(whole[:hurt:hurt], whole[hurt+1:]...)
			same(t, lines(t, path, all), want)
			tail := all
			tail.Tail = 2
			same(t, lines(t, path, tail), want)
		}
	})
}

func TestLongLineComesInPieces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("z", 3<<20) + "\n"
	write(t, path, 0, 0, piece{Stdout, long}, piece{Stdout, "next\n"})
	var got bytes.Buffer
	err := Read(context.Background(), path, all, func(l Line) error {
		if len(l.Data) > maxLine+MaxPayload {
			t.Errorf("a piece of %d bytes", len(l.Data))
		}
		got.Write(l.Data)
		return nil
	})
	if err != nil || got.String() != long+"next\n" {
		t.Errorf("got %d bytes (%v), want %d", got.Len(), err, len(long)+5)
	}
	o := all
	o.Tail = 1
	same(t, lines(t, path, o), []string{"1@1001:next\n"})
}

func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	// A mount namespace of this thread's own, which ends with the goroutine: the host sees nothing of the mount.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Skipf("cannot make a mount namespace: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("onggi-test", dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	path := filepath.Join(dir, "log")
	w, err := Create(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; n < 100 && err == nil; n++ {
		err = w.Append(Stdout, time.Now(), bytes.Repeat([]byte("x"), 9999))
	}
	if err == nil {
		t.Fatal("a 128 KiB file system took 1 MB")
	}
	if !strings.Contains(err.Error(), path) {
		t.Errorf("error %q does not name %s", err, path)
	}
	// A smaller frame still fits: nothing of the failed one is in its way.
	if err := w.Append(Stdout, time.Now(), []byte("\nsmall\n")); err != nil {
		t.Fatal(err)
	}
	o := all
	o.Tail = 1
	if got := lines(t, path, o); len(got) != 1 || !strings.HasSuffix(got[0], ":small\n") {
		t.Errorf("got %q, want the small line", got)
	}
	_ = w.Close(false)
}

// TestFollow reads while a writer rotates, faster and slower than it.
func TestFollow(t *testing.T) {
	for _, c := range []struct {
		name  string
		files int
		pause time.Duration
		n     int
	}{{"rotating", 100, 0, 5000}, {"trickle", 3, time.Millisecond, 100}, {"one file", 1, 2 * time.Millisecond, 200}} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			stop := make(chan struct{})
			go func() {
				defer close(stop)
				w, err := Create(path, 20000, c.files)
				if err != nil {
					t.Error(err)
					return
				}
				for i := 0; i < c.n; i++ {
					if err := w.Append(Stdout, time.Now(), fmt.Appendf(nil, "%06d %s\n", i, strings.Repeat("-", 200))); err != nil {
						t.Error(err)
					}
					time.Sleep(c.pause)
				}
				_ = w.Append(Stderr, time.Now(), []byte("partial"))
				_ = w.Close(false)
			}()
			o := all
			o.Follow = true
			o.Done = func() bool {
				select {
				case <-stop:
					return true
				default:
					return false
				}
			}
			next, last := 0, ""
			err := Read(context.Background(), path, o, func(l Line) error {
				last = string(l.Data)
				if l.Stream == Stderr {
					return nil
				}
				if want := fmt.Sprintf("%06d ", next); !strings.HasPrefix(last, want) {
					return fmt.Errorf("got %q, want line %s", last[:6], want)
				}
				next++
				return nil
			})
			if err != nil || next != c.n || last != "partial" {
				t.Errorf("got %d lines, last %q, error %v; want %d", next, last, err, c.n)
			}
		})
	}
}

func TestFollowEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, 0, 0, piece{Stdout, "a\n"})
	o := all
	o.Follow = true
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := Read(ctx, path, o, func(Line) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	stop := errors.New("enough")
	if err := Read(context.Background(), path, o, func(Line) error { return stop }); err != stop {
		t.Errorf("got %v, want the callback's error", err)
	}
	o.Until = time.Now()
	if err := Read(context.Background(), path, o, func(Line) error { return nil }); err != nil {
		t.Errorf("follow until a time that has passed: %v", err)
	}
	if err := Read(context.Background(), path+"-none", all, func(Line) error { return nil }); err != nil {
		t.Errorf("a log that does not exist: %v", err)
	}
}

// TestAppendFromTwoStreams is meant for -race, too.
func TestAppendFromTwoStreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Create(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	for _, s := range []Stream{Stdout, Stderr} {
		go func() {
			var err error
			for i := 0; i < 1000 && err == nil; i++ {
				err = w.Append(s, time.Now(), fmt.Appendf(nil, "%d %d\n", s, i))
			}
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close(false)
	if got := len(lines(t, path, all)); got != 2000 {
		t.Errorf("got %d lines, want 2000", got)
	}
}

func FuzzRead(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed")
	write(f, path, 0, 0, piece{Stdout, "one\ntwo"}, piece{Stderr, "err\n"}, piece{Stdout, "\nthree"})
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, b[:50], 2)
	f.Add(b[10:], b, -1)
	f.Add(append(b[:len(b)-2:len(b)-2], b...), []byte{}, 1)
	f.Add(bytes.Repeat(magicBytes, 100), b, 0)
	f.Fuzz(func(t *testing.T, newest, older []byte, tail int) {
		path := filepath.Join(t.TempDir(), "log")
		if os.WriteFile(path, newest, 0o600) != nil || os.WriteFile(path+".1", older, 0o600) != nil {
			t.Skip()
		}
		o := all
		o.Tail = tail
		n, size := 0, 0
		if err := Read(context.Background(), path, o, func(l Line) error { n++; size += len(l.Data); return nil }); err != nil {
			t.Fatal(err)
		}
		if size > len(newest)+len(older) || tail >= 0 && n > tail+2 {
			t.Errorf("tail %d gave %d lines, %d bytes", tail, n, size)
		}
		// Whatever was there, the writer goes on and its line is found.
		w, err := Create(path, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Append(Stderr, time.Now(), []byte("\nnew line\n")); err != nil {
			t.Fatal(err)
		}
		_ = w.Close(false)
		o.Tail = 1
		if got := lines(t, path, o); len(got) != 1 || !strings.HasSuffix(got[0], ":new line\n") {
			t.Errorf("got %q, want the new line", got)
		}
	})
}

// BenchmarkLog writes and reads 100 MB of 100-byte lines in frames of 64 KiB.
func BenchmarkLog(b *testing.B) {
	dir, err := os.MkdirTemp("/var/tmp", fmt.Sprintf("onggi-test.%d.", os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	chunk := bytes.Repeat(append(bytes.Repeat([]byte("l"), 99), '\n'), MaxPayload/100)
	path := filepath.Join(dir, "log")
	b.Run("append", func(b *testing.B) {
		b.SetBytes(int64(len(chunk)))
		w, err := Create(path, 200<<20, 3)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if err := w.Append(Stdout, time.Now(), chunk); err != nil {
				b.Fatal(err)
			}
		}
		_ = w.Close(false)
	})
	_ = os.Remove(path)
	w, err := Create(path, 200<<20, 3)
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; i < 100e6/len(chunk); i++ {
		if err := w.Append(Stdout, time.Now(), chunk); err != nil {
			b.Fatal(err)
		}
	}
	_ = w.Close(false)
	for _, n := range []int{-1, 10} {
		b.Run(fmt.Sprintf("read 100 MB tail %d", n), func(b *testing.B) {
			o := all
			o.Tail = n
			for b.Loop() {
				if err := Read(context.Background(), path, o, func(l Line) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
