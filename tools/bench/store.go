package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// storeEngine is an engine with a store that has just been made.
type storeEngine struct {
	argv     []string // its command line
	pull     []string // what to add for a pull, before the image
	push     []string
	dir      string // what it keeps on the disk
	noCommit bool   // it has no commit
	remove   []string
}

// storeEngines returns, by name, how each engine is started on a store of the given name.
func (b *bench) storeEngines() (order []string, start map[string]func(store string) (storeEngine, error)) {
	ours := func(bin string) func(string) (storeEngine, error) {
		return func(store string) (storeEngine, error) {
			argv := []string{bin, "--root", b.dir(store), "--run-root", b.run(store)}
			return storeEngine{argv: argv, pull: []string{"pull"}, push: []string{"push"}, remove: []string{"rmi"}, dir: b.dir(store)}, nil
		}
	}
	start = map[string]func(string) (storeEngine, error){
		"onggi": ours(b.onggi()),
		"podman": func(store string) (storeEngine, error) {
			return storeEngine{
				argv: b.podman(store), pull: []string{"pull", "--tls-verify=false"}, push: []string{"push", "--tls-verify=false"},
				remove: []string{"rmi"}, dir: b.dir(store),
			}, nil
		},
		"docker": func(store string) (storeEngine, error) {
			argv, err := b.startDocker(store, "--bridge=none", "--iptables=false")
			return storeEngine{argv: argv, pull: []string{"pull"}, push: []string{"push"}, remove: []string{"rmi"}, dir: b.dir(store)}, err
		},
		"containerd (ctr)": func(store string) (storeEngine, error) {
			argv, err := b.startContainerd(store)
			return storeEngine{
				argv: argv, pull: []string{"images", "pull", "--plain-http"}, push: []string{"images", "push", "--plain-http"},
				remove: []string{"images", "rm", "--sync"}, dir: b.dir(store), noCommit: true,
			}, err
		},
	}
	order = []string{"onggi", "podman", "docker", "containerd (ctr)"}
	if b.old != "" {
		start["onggi (old)"] = ours(filepath.Join(b.old, "onggi"))
		order = slices.Insert(order, 1, "onggi (old)")
	}
	return order, start
}

const benchRepository = registryAddr + "/bench"

// pull pulls that image cold with each engine, into a store that has just been made and with daemons that have just been
// started; then, in the same store: again when nothing has changed, a version of which one layer of 1 MB is another one,
// commit and push of a change of 1 MB, and the removal of them all. Nothing large is removed before the end: ext4 avoids
// inodes that were deleted in the last seconds, which would charge one engine for the other's removal. What others write
// is synced before.
func (b *bench) pull() {
	before := len(b.daemons)
	defer b.stopTo(before)
	if err := b.startRegistry(); err != nil {
		fmt.Println("pull is left out:", err)
		return
	}
	if err := b.pullImage(); err != nil {
		fmt.Println("pull is left out:", err)
		return
	}
	image := benchRepository + ":v1"
	order, start := b.storeEngines()
	const smalls, commits = 3, 2
	n := max(3, b.n/7)
	versions := 0
	type rows struct{ cold, again, small, commit, push, pushed, remove *contender }
	var all []rows
	disk, memory := map[string]int64{}, map[string]int64{}
	for i, name := range order {
		row := func() *contender { return &contender{name: name} }
		r := rows{row(), row(), row(), row(), row(), row(), row()}
		all = append(all, r)
		round, daemons, removal := 0, 0, 0
		kept := map[int][]string{} // by round
		var e storeEngine
		var peak int64
		var others []string // what was pulled or committed beside the image
		run := func(args ...string) error {
			out, err := b.command(slices.Concat(e.argv, args)).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, lastLine(string(out)))
			}
			return err
		}
		r.cold.prepare = func() (err error) {
			round++
			others = nil
			daemons = len(b.daemons)
			e, err = start[name](fmt.Sprintf("pull%d-%d", i, round))
			syscall.Sync()
			time.Sleep(2 * time.Second)
			return err
		}
		r.cold.deed = func() error {
			cmd := b.command(slices.Concat(e.argv, e.pull, []string{image}))
			out, err := os.Create(filepath.Join(b.work, "said"))
			must(err)
			defer out.Close()
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Run(); err != nil {
				raw, _ := os.ReadFile(out.Name())
				return fmt.Errorf("%w: %s", err, lastLine(string(raw)))
			}
			peak = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
			return nil
		}
		r.small.prepare = func() error {
			versions++
			tag := "s" + strconv.Itoa(versions)
			if err := b.pushVersion(tag); err != nil {
				return err
			}
			others = append(others, benchRepository+":"+tag)
			r.small.argv = slices.Concat(e.argv, e.pull, []string{benchRepository + ":" + tag})
			return nil
		}
		change := 0
		r.commit.prepare = func() error {
			change++
			id := fmt.Sprintf("change%d", change)
			if err := run("run", "--network", "none", "--name", id, image, "dd", "if=/dev/urandom", "of=/change", "bs=64k", "count=16"); err != nil {
				return err
			}
			others = append(others, fmt.Sprintf("%s:c%d-%d", benchRepository, i, change))
			r.commit.argv = slices.Concat(e.argv, []string{"commit", id, others[len(others)-1]})
			return nil
		}
		r.push.argv = []string{"set below"}
		r.push.prepare = func() error {
			r.push.argv = slices.Concat(e.argv, e.push, []string{others[len(others)-1]})
			r.pushed.argv = r.push.argv
			return nil
		}
		r.remove.prepare = func() (err error) { // when all have pulled: in the stores of the rounds, one after the other
			removal++
			daemons = len(b.daemons)
			if e, err = start[name](fmt.Sprintf("pull%d-%d", i, removal)); err != nil {
				return err
			}
			if !e.noCommit {
				if err := run("rm", "change"+strconv.Itoa(commits*removal), "change"+strconv.Itoa(commits*removal-1)); err != nil {
					return err
				}
			}
			r.remove.argv = slices.Concat(e.argv, e.remove, []string{image}, kept[removal])
			return nil
		}
		r.remove.after = func() error { b.stopTo(daemons); return nil }
		for _, c := range []*contender{r.small, r.commit, r.remove} {
			c.argv = []string{"set before each"}
		}
		r.cold.after = func() error {
			defer b.stopTo(daemons)
			if r.cold.err != nil {
				return nil
			}
			for _, d := range b.daemons[daemons:] {
				peak += peakOf(d.Process.Pid)
			}
			memory[name] = max(memory[name], peak)
			disk[name] = diskUse(e.dir)
			r.again.argv = slices.Concat(e.argv, e.pull, []string{image})
			b.rounds(3, r.again)
			b.rounds(smalls, r.small)
			if e.noCommit {
				none := fmt.Errorf("it has no commit")
				r.commit.err, r.push.err, r.pushed.err = none, none, none
			} else {
				b.rounds(commits, r.commit, r.push, r.pushed)
			}
			kept[round] = others
			return nil
		}
	}
	defer func() {
		var cs []*contender
		for _, r := range all {
			if r.cold.err == nil {
				cs = append(cs, r.remove)
			}
		}
		b.rounds(n, cs...)
		b.table(fmt.Sprintf("image: rmi of the image and its %d versions (%d rounds)", smalls+commits, n), []aim{{limit: 50 * time.Millisecond}}, cs...)
	}()
	table := func(title string, aims []aim, pick func(rows) *contender) {
		var cs []*contender
		for _, r := range all {
			cs = append(cs, pick(r))
		}
		b.table(title, aims, cs...)
	}
	b.rounds(n, func() (cs []*contender) {
		for _, r := range all {
			cs = append(cs, r.cold)
		}
		return cs
	}()...)
	table(fmt.Sprintf("image: cold pull and unpack from a loopback registry, each into a new store (%d rounds)", n),
		[]aim{{than: []string{"podman", "docker", "containerd (ctr)"}, times: 3}}, func(r rows) *contender { return r.cold })
	table(fmt.Sprintf("image: pull again, nothing changed (%d rounds of 3)", n), []aim{{limit: 15 * time.Millisecond}}, func(r rows) *contender { return r.again })
	table(fmt.Sprintf("image: pull of a version with one layer of 1 MB changed (%d rounds of %d)", n, smalls), []aim{{limit: 60 * time.Millisecond}}, func(r rows) *contender { return r.small })
	table(fmt.Sprintf("image: commit of a change of 1 MB (%d rounds of %d)", n, commits), []aim{{limit: 60 * time.Millisecond}}, func(r rows) *contender { return r.commit })
	table(fmt.Sprintf("image: push, one layer of 1 MB is new (%d rounds of %d)", n, commits), []aim{{limit: 50 * time.Millisecond}}, func(r rows) *contender { return r.push })
	table(fmt.Sprintf("image: push, nothing is new (%d rounds of %d)", n, commits), nil, func(r rows) *contender { return r.pushed })
	fmt.Printf("\n### image: what that pull took\n\n| | disk used by the store | peak memory, daemons included |\n|---|---|---|\n")
	var leanest int64
	for _, name := range order {
		if disk[name] == 0 {
			continue
		}
		fmt.Printf("| %s | %.1f MB | %.1f MiB |\n", name, float64(disk[name])/1e6, float64(memory[name])/(1<<20))
		if !strings.HasPrefix(name, "onggi") && (leanest == 0 || disk[name] < leanest) {
			leanest = disk[name]
		}
	}
	if leanest > 0 && disk["onggi"] > 0 {
		b.verdict("image: disk used after the pull", fmt.Sprintf("no more than the leanest peer's %.1f MB", float64(leanest)/1e6),
			fmt.Sprintf("%.1f MB", float64(disk["onggi"])/1e6), disk["onggi"] <= leanest)
	}
	b.verdict("image: peak memory of the pull", "at most 60 MiB", fmt.Sprintf("%.1f MiB", float64(memory["onggi"])/(1<<20)), memory["onggi"] <= 60<<20)
}

// peakOf returns the peak resident memory of a process and its descendants, in bytes.
func peakOf(pid int) (sum int64) {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, l := range strings.Split(string(raw), "\n") {
		if f := strings.Fields(l); len(f) > 1 && f[0] == "VmHWM:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			sum += kb << 10
		}
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		raw, _ := os.ReadFile(t)
		for _, c := range strings.Fields(string(raw)) {
			child, _ := strconv.Atoi(c)
			sum += peakOf(child)
		}
	}
	return sum
}

// diskUse is du's answer for a directory on one file system, in bytes.
func diskUse(dir string) int64 {
	syscall.Sync() // delayed allocation counts too much before
	out, err := exec.Command("du", "-sxk", dir).Output()
	if err != nil {
		return 0
	}
	kb, _ := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	return kb << 10
}

// pushVersion puts the image into the registry under another tag, with another layer of 1 MB at its top.
func (b *bench) pushVersion(tag string) error {
	var m ocispec.Manifest
	if err := b.fetchJSON("manifests/v1", &m); err != nil {
		return err
	}
	var config map[string]any
	if err := b.fetchJSON("blobs/"+string(m.Config.Digest), &config); err != nil {
		return err
	}
	content := make([]byte, 1<<20)
	seed := sha256.Sum256([]byte(tag))
	r := rand.NewChaCha8(seed)
	_, _ = r.Read(content)
	var layer, packed bytes.Buffer
	t := tar.NewWriter(&layer)
	must(t.WriteHeader(&tar.Header{Name: "usr/local/bin/app", Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0)}))
	_, _ = t.Write(content)
	must(t.Close())
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(layer.Bytes())
	must(z.Close())
	m.Layers[len(m.Layers)-1] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(packed.Bytes()), Size: int64(packed.Len())}
	ids := config["rootfs"].(map[string]any)["diff_ids"].([]any)
	ids[len(ids)-1] = string(digest.FromBytes(layer.Bytes()))
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	m.Config.Digest, m.Config.Size = digest.FromBytes(raw), int64(len(raw))
	if err := b.putBlob(m.Layers[len(m.Layers)-1], &packed); err != nil {
		return err
	}
	if err := b.putBlob(m.Config, bytes.NewReader(raw)); err != nil {
		return err
	}
	doc, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return put("http://"+registryAddr+"/v2/bench/manifests/"+tag, m.MediaType, int64(len(doc)), bytes.NewReader(doc))
}

func (b *bench) fetchJSON(path string, into any) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+registryAddr+"/v2/bench/"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, r.Status)
	}
	return json.NewDecoder(r.Body).Decode(into)
}

func (b *bench) putBlob(d ocispec.Descriptor, body io.Reader) error {
	r, err := http.Post("http://"+registryAddr+"/v2/bench/blobs/uploads/", "", nil)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, r.Body)
	_ = r.Body.Close()
	to := r.Header.Get("Location")
	if strings.HasPrefix(to, "/") {
		to = "http://" + registryAddr + to
	}
	sep := "?"
	if strings.Contains(to, "?") {
		sep = "&"
	}
	return put(to+sep+"digest="+string(d.Digest), "application/octet-stream", d.Size, body)
}

func put(url, mediaType string, size int64, body io.Reader) error {
	req, err := http.NewRequest(http.MethodPut, url, io.NopCloser(body))
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", mediaType)
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	said, _ := io.ReadAll(io.LimitReader(r.Body, 300))
	_ = r.Body.Close()
	if r.StatusCode != http.StatusCreated {
		return fmt.Errorf("PUT %s: %s: %s", url, r.Status, said)
	}
	return nil
}

const manyImages = 1000

// images lists 1,000 images, which each engine has loaded from one archive before.
func (b *bench) images() {
	before := len(b.daemons)
	defer b.stopTo(before)
	tarball := filepath.Join(b.work, "many.tar")
	if err := b.manyImages(tarball); err != nil {
		fmt.Println("images is left out:", err)
		return
	}
	order, start := b.storeEngines()
	var cs []*contender
	for i, name := range order {
		if name == "containerd (ctr)" {
			continue // the archive would be of another form, and its list reads no configuration
		}
		c := &contender{name: name}
		cs = append(cs, c)
		e, err := start[name]("images" + strconv.Itoa(i))
		if err != nil {
			c.err = err
			continue
		}
		if out, err := b.command(slices.Concat(e.argv, []string{"load", "-q", "-i", tarball})).CombinedOutput(); err != nil {
			c.err = fmt.Errorf("load: %w: %s", err, lastLine(string(out)))
			continue
		}
		c.argv = slices.Concat(e.argv, []string{"images"})
	}
	b.race(fmt.Sprintf("image: images, %d of them", manyImages), b.n, []aim{{limit: 30 * time.Millisecond}}, cs...)
}

// manyImages writes an archive as `docker save` does, of images that differ in their configuration only.
func (b *bench) manyImages(path string) error {
	var layer bytes.Buffer
	t := tar.NewWriter(&layer)
	must(t.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: 5, Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0)}))
	_, _ = t.Write([]byte("onggi"))
	must(t.Close())
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	out := tar.NewWriter(f)
	add := func(name string, content []byte) {
		must(out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0)}))
		_, err := out.Write(content)
		must(err)
	}
	type image struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	add("layer.tar", layer.Bytes())
	var all []image
	for i := range manyImages {
		raw := fmt.Appendf(nil, `{"architecture":%q,"os":"linux","created":"2026-01-01T00:00:00Z","config":{"Labels":{"n":"%d"}},"rootfs":{"type":"layers","diff_ids":[%q]},`+
			`"history":[{"created":"2026-01-01T00:00:00Z","created_by":"bench"}]}`, runtime.GOARCH, i, digest.FromBytes(layer.Bytes()))
		name := digest.FromBytes(raw).Encoded() + ".json"
		add(name, raw)
		all = append(all, image{Config: name, RepoTags: []string{fmt.Sprintf("many/i%d:latest", i)}, Layers: []string{"layer.tar"}})
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return err
	}
	add("manifest.json", raw)
	return out.Close()
}
