package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	profile "github.com/moby/profiles/seccomp"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// writeProfile writes docker's default profile for a container with docker's default capabilities, so that every
// runtime gets the same document.
func writeProfile(path string) error {
	spec := &runspec.Spec{Process: &runspec.Process{Capabilities: &runspec.LinuxCapabilities{Bounding: []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}}}}
	p, err := profile.GetDefaultProfile(spec)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}

const registryAddr = "127.0.0.1:15999"

// startRegistry starts Debian's docker-registry on loopback.
func (b *bench) startRegistry() error {
	conf := filepath.Join(b.work, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", b.dir("registry"), registryAddr)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	return b.daemon("registry.log", []string{"docker-registry", "serve", conf}, func() bool {
		r, err := http.Get("http://" + registryAddr + "/v2/")
		if err == nil {
			_ = r.Body.Close()
		}
		return err == nil
	})
}

// pullImage builds the image of four layers (debootstrap base, 5,000 small files, a 200 MB file of which half
// compresses, a 1 MB file) and pushes it.
func (b *bench) pullImage() error {
	layout := filepath.Join(b.work, "layout")
	base := filepath.Join(b.work, "base.tar")
	run := func(name string, args ...string) error {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, lastLine(string(out)))
		}
		return nil
	}
	if _, err := os.Stat(base); err != nil {
		if cached := os.Getenv("ONGGI_BENCH_BASE"); cached != "" {
			if err := run("cp", cached, base); err != nil {
				return err
			}
		} else if err := run("mmdebstrap", "--variant=minbase", "bookworm", base); err != nil {
			return err
		}
	}
	files := b.dir("files")
	rnd := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 3800)
	for i := range 5000 {
		for j := range buf {
			buf[j] = byte(rnd.UintN(64)) + 32
		}
		dir := filepath.Join(files, fmt.Sprintf("d%02d", i%50))
		_ = os.MkdirAll(dir, 0o755)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), buf, 0o644); err != nil {
			return err
		}
	}
	big := make([]byte, 210<<20)
	for i := 0; i < len(big); i += 2 {
		big[i] = byte(rnd.UintN(40))
	}
	bin := filepath.Join(b.work, "big")
	if err := os.WriteFile(bin, big, 0o755); err != nil {
		return err
	}
	app := filepath.Join(b.work, "app")
	if err := os.WriteFile(app, big[:1<<20], 0o755); err != nil {
		return err
	}
	rootfs := b.dir("base-root")
	steps := [][]string{
		{"umoci", "init", "--layout", layout},
		{"umoci", "new", "--image", layout + ":v1"},
		{"tar", "-C", rootfs, "-xf", base},
		{"umoci", "insert", "--image", layout + ":v1", rootfs, "/"},
		{"umoci", "insert", "--image", layout + ":v1", files, "/srv/files"},
		{"umoci", "insert", "--image", layout + ":v1", bin, "/usr/local/bin/big"},
		{"umoci", "insert", "--image", layout + ":v1", app, "/usr/local/bin/app"},
		{"skopeo", "copy", "--dest-tls-verify=false", "oci:" + layout + ":v1", "docker://" + registryAddr + "/bench:v1"},
	}
	for _, s := range steps {
		if err := run(s[0], s[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// pull pulls that image cold with each engine, into a store that has just been made and with daemons that have just been
// started, and again when nothing has changed. Nothing is removed before the end: ext4 avoids inodes that were deleted
// in the last seconds, which would charge one engine for the other's removal. What others write is synced before.
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
	image := registryAddr + "/bench:v1"
	ours := func(bin, store string) []string {
		return []string{bin, "--root", b.dir(store), "--run-root", b.dir(store + "-run"), "pull", image}
	}
	// Each is given a store's name and returns what to run.
	engines := map[string]func(store string) ([]string, error){
		"onggi": func(store string) ([]string, error) { return ours(b.onggi(), store), nil },
		"podman": func(store string) ([]string, error) {
			return append(b.podman(store), "pull", "--tls-verify=false", image), nil
		},
		"docker": func(store string) ([]string, error) {
			argv, err := b.startDocker(store, "--bridge=none", "--iptables=false")
			return append(argv, "pull", image), err
		},
		"containerd (ctr)": func(store string) ([]string, error) {
			argv, err := b.startContainerd(store)
			return append(argv, "images", "pull", "--plain-http", image), err
		},
	}
	order := []string{"onggi", "podman", "docker", "containerd (ctr)"}
	if b.old != "" {
		engines["onggi (old)"] = func(store string) ([]string, error) { return ours(filepath.Join(b.old, "onggi"), store), nil }
		order = slices.Insert(order, 1, "onggi (old)")
	}
	var cold, again []*contender
	for i, name := range order {
		c, a := &contender{name: name}, &contender{name: name}
		cold, again = append(cold, c), append(again, a)
		round, daemons := 0, 0
		c.argv = []string{"set below"}
		c.prepare = func() (err error) {
			round++
			daemons = len(b.daemons)
			c.argv, err = engines[name](fmt.Sprintf("pull%d-%d", i, round))
			a.argv = c.argv
			syscall.Sync()
			time.Sleep(2 * time.Second)
			return err
		}
		c.after = func() error {
			if c.err == nil {
				b.rounds(3, a)
			}
			b.stopTo(daemons)
			return nil
		}
	}
	n := max(3, b.n/7)
	b.rounds(n, cold...)
	b.table(fmt.Sprintf("image: cold pull and unpack from a loopback registry, each into a new store (%d rounds)", n),
		[]aim{{than: []string{"podman", "docker", "containerd (ctr)"}, times: 1.5}}, cold...)
	b.table(fmt.Sprintf("image: pull again, nothing changed (%d rounds of 3)", n), nil, again...)
}
