package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// bigImage is an image with a layer of about 40 MB that does not compress, pushed to a real registry behind a watch.
func bigImage(t *testing.T) (*watch, string, *testImage) {
	t.Helper()
	noise := make([]byte, 40<<20)
	x := uint64(88172645463325252)
	for k := range noise { // xorshift
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		noise[k] = byte(x)
	}
	i := imageOf("amd64", layerOf(ocispec.MediaTypeImageLayer, file{"noise", string(noise)}), layerOf(ocispec.MediaTypeImageLayerGzip, file{"etc/hostname", "jar"}))
	w := watchRegistry(t, realRegistry(t, ""))
	s := root(t)
	must(t, load(t, s, ociArchive(i.documents, called(i.desc, "app:1"))))
	_, _, err := push(t, s, "app:1", w.addr+"/me/app:1", func(o *PushOptions) { o.Compression.Name = "none" })
	must(t, err)
	w.reset()
	return w, w.addr + "/me/app:1", i
}

// layerGet reports whether a request is for the big layer.
func (w *watch) layerGet(r *http.Request, i *testImage) bool {
	return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, string(i.layers[0].desc.Digest))
}

func (w *watch) bytesGot() int64 { w.mu.Lock(); defer w.mu.Unlock(); return w.got }

// limited passes n bytes of an answer on, and then hangs up, or waits until the client does.
type limited struct {
	http.ResponseWriter
	n     int
	stall <-chan struct{}
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) <= l.n {
		l.n -= len(p)
		return l.ResponseWriter.Write(p)
	}
	_, _ = l.ResponseWriter.Write(p[:l.n])
	l.ResponseWriter.(http.Flusher).Flush()
	if l.stall != nil {
		<-l.stall
	}
	panic(http.ErrAbortHandler)
}

func (l *limited) Flush() { l.ResponseWriter.(http.Flusher).Flush() }

func TestPullFromARegistryThatMisbehaves(t *testing.T) {
	w, name, i := bigImage(t)
	target := w.proxy
	size := i.layers[0].desc.Size
	var mu sync.Mutex
	n := 0
	count := func() int { mu.Lock(); defer mu.Unlock(); n++; return n }
	for what, c := range map[string]struct {
		spoil func(rw http.ResponseWriter, r *http.Request) bool
		extra int64 // bytes of the layer that may be sent twice
	}{
		"cuts": {func(rw http.ResponseWriter, r *http.Request) bool {
			if count() > 12 {
				return false
			}
			target.ServeHTTP(&limited{rw, 3 << 20, nil}, r)
			return true
		}, 4 << 20},
		"stalls": {func(rw http.ResponseWriter, r *http.Request) bool {
			if count() > 3 {
				return false
			}
			target.ServeHTTP(&limited{rw, 2 << 20, r.Context().Done()}, r)
			return true
		}, 4 << 20},
		"answers 500 and 503": {func(rw http.ResponseWriter, r *http.Request) bool {
			k := count()
			if k > 5 {
				return false
			}
			if k%2 == 0 {
				rw.Header().Set("Retry-After", "0")
				rw.WriteHeader(http.StatusServiceUnavailable)
			} else {
				rw.WriteHeader(http.StatusInternalServerError)
			}
			return true
		}, 0},
		"knows no ranges": {func(rw http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}, size},
		"sends another range": {func(rw http.ResponseWriter, r *http.Request) bool {
			if rg := r.Header.Get("Range"); rg != "" {
				r.Header.Set("Range", "bytes=7-"+rg[strings.IndexByte(rg, '-')+1:])
			}
			return false
		}, size},
		"knows no ranges any more": {func(rw http.ResponseWriter, r *http.Request) bool {
			if count() > 2 {
				r.Header.Del("Range")
			}
			return false
		}, size},
	} {
		t.Run(what, func(t *testing.T) {
			n = 0
			w.mu.Lock()
			w.spoil = func(rw http.ResponseWriter, r *http.Request) bool { return w.layerGet(r, i) && c.spoil(rw, r) }
			w.mu.Unlock()
			w.reset()
			s := root(t)
			cl := registry.New(registry.Options{StallTimeout: 700 * time.Millisecond, Retries: 4})
			defer cl.Close()
			img, err := pull(t, s, parseRef(t, name), func(o *PullOptions) { o.Registry = cl })
			if err != nil || img.ID != i.id {
				t.Fatalf("%v, %v", img, err)
			}
			// What a proxy and the kernel hold when a connection ends was sent, too, and is not ours to count.
			if got, limit := w.bytesGot(), size+c.extra+1<<20+16<<20; got > limit {
				t.Errorf("%d bytes were sent for %d", got, size)
			}
			must(t, s.rebuild(bg, i.layers[0].desc, i.layers[0].diffID))
			if r, err := s.content.Open(i.layers[0].desc); err != nil {
				t.Error(err)
			} else if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
			if left := left(t, s); strings.Contains(strings.Join(left, " "), "ingest/") {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// TestPullGoesOnAfterKills kills a pull four times on its way and counts what is sent in all.
func TestPullGoesOnAfterKills(t *testing.T) {
	if dir := os.Getenv("ONGGI_TEST_RESUME"); dir != "" {
		_, err := pull(t, openRoot(t, dir), parseRef(t, os.Getenv("ONGGI_TEST_REF")), func(o *PullOptions) { o.Registry = registry.New(registry.Options{}) })
		must(t, err)
		return
	}
	w, name, i := bigImage(t)
	size := i.layers[0].desc.Size
	w.mu.Lock()
	w.spoil = func(rw http.ResponseWriter, r *http.Request) bool { // slow, so that there is a middle
		if w.layerGet(r, i) {
			w.proxy.ServeHTTP(&slow{rw}, r)
			return true
		}
		return false
	}
	w.mu.Unlock()
	dir := root(t).rootDir()
	var total int64
	for _, part := range []int64{15, 35, 55, 75, 1000} { // percent
		cmd := exec.Command(os.Args[0], "-test.run=^TestPullGoesOnAfterKills$")
		cmd.Env = append(os.Environ(), "ONGGI_TEST_RESUME="+dir, "ONGGI_TEST_REF="+name)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		killed := false
	wait:
		for {
			select {
			case err := <-ended:
				if err != nil && !killed {
					t.Fatalf("%v\n%s", err, out.String())
				}
				break wait
			case <-time.After(5 * time.Millisecond):
				if !killed && w.bytesGot() >= size*part/100 {
					killed = true
					_ = cmd.Process.Kill()
				}
			}
		}
		time.Sleep(50 * time.Millisecond) // the registry's side notices
		total = w.bytesGot()
		if !killed {
			break
		}
	}
	s := openRoot(t, dir)
	if img, err := s.Get(name); err != nil || img.ID != i.id {
		t.Fatalf("%v, %v", img, err)
	}
	// Each kill may cost a chunk of each of the four connections, and what was in the buffers between.
	if limit := size + 4*(4<<20+4*(1<<20)); total > limit {
		t.Errorf("%d bytes were sent for %d with four kills, more than %d", total, size, limit)
	}
	t.Logf("%d bytes were sent for %d: %.0f %%", total, size, float64(total)*100/float64(size))
	must(t, s.Sweep(bg))
	if left := left(t, s); strings.Contains(strings.Join(left, " "), "ingest/") {
		t.Errorf("left: %q", left)
	}
}

// slow passes an answer on at about 30 MB/s for each connection.
type slow struct{ http.ResponseWriter }

func (s *slow) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		n, err := s.ResponseWriter.Write(p[:min(len(p), 16<<10)])
		done += n
		if err != nil {
			return done, err
		}
		s.Flush()
		p = p[n:]
		time.Sleep(500 * time.Microsecond)
	}
	return done, nil
}
func (s *slow) Flush() { s.ResponseWriter.(http.Flusher).Flush() }

func TestPullGoesOnAfterCtrlC(t *testing.T) {
	w, name, i := bigImage(t)
	s := root(t)
	size := i.layers[0].desc.Size
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	c := registry.New(registry.Options{})
	defer c.Close()
	_, err := s.Pull(ctx, parseRef(t, name), PullOptions{Registry: c, Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}, Progress: func(p Progress) {
		if p.Status == "Downloading" && p.Done > 10<<20 {
			cancel()
		}
	}})
	if err != nil && !errdefs.Is(err, errdefs.Canceled) {
		t.Fatal(err)
	}
	if err == nil {
		t.Skip("the pull was faster than its cancellation")
	}
	p, err := s.content.Partials()
	if err != nil || len(p) != 1 {
		t.Fatalf("partials: %v, %v", p, err)
	}
	before := w.bytesGot()
	if _, err := pull(t, s, parseRef(t, name)); err != nil {
		t.Fatal(err)
	}
	if again := w.bytesGot() - before; again > size-6<<20 {
		t.Errorf("%d of %d bytes were fetched again", again, size)
	}
}

func TestMirrorServesParts(t *testing.T) {
	w, name, i := bigImage(t)
	_ = i
	dir := t.TempDir()
	ref := parseRef(t, name)
	must(t, os.MkdirAll(dir+"/hub.example", 0o755))
	must(t, os.WriteFile(dir+"/hub.example/hosts.toml", fmt.Appendf(nil, "server = \"http://127.0.0.1:1\"\n[host.%s]\n", strconv.Quote("http://"+w.addr)), 0o600))
	c := registry.New(registry.Options{Retries: -1, Rules: registry.NewRules(registry.RuleFiles{HostsDirs: []string{dir}})})
	defer c.Close()
	ref.Domain = "hub.example"
	img, err := pull(t, root(t), ref, func(o *PullOptions) { o.Registry = c })
	if err != nil || img.ID != i.id {
		t.Errorf("%v, %v", img, err)
	}
}
