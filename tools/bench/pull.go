package main

import (
	"bytes"
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
	c := exec.Command("docker-registry", "serve", conf)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := c.Start(); err != nil {
		return err
	}
	b.registry = c
	for range 100 {
		if r, err := http.Get("http://" + registryAddr + "/v2/"); err == nil {
			_ = r.Body.Close()
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("docker-registry did not answer")
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

// pull pulls that image cold with each engine, and again when nothing has changed. Before each cold pull the engine's
// image is removed, and the run waits: ext4 avoids inodes that were deleted in the last seconds, which would charge one
// engine for the other's removal.
func (b *bench) pull() {
	if err := b.startRegistry(); err != nil {
		fmt.Println("pull is left out:", err)
		return
	}
	if err := b.pullImage(); err != nil {
		fmt.Println("pull is left out:", err)
		return
	}
	e := b.engines()
	name := registryAddr + "/bench:v1"
	settle := func() error { time.Sleep(45 * time.Second); return nil }
	var cold, again []*contender
	for _, n := range order {
		c := &contender{name: n}
		if argv, ok := e[n]; ok {
			args := []string{"pull"}
			if n == "podman" {
				args = append(args, "--tls-verify=false")
			}
			c.argv = slices.Concat(argv, args, []string{name})
			c.prepare = func() error {
				_ = b.command(slices.Concat(argv, []string{"rmi", "-f", name})).Run()
				return settle()
			}
		}
		cold = append(cold, c)
	}
	if ctr, err := b.startContainerd(); err == nil {
		c := &contender{name: "containerd (ctr)", argv: slices.Concat(ctr, []string{"images", "pull", "--plain-http", name})}
		c.prepare = func() error {
			_ = b.command(slices.Concat(ctr, []string{"images", "rm", "--sync", name})).Run()
			return settle()
		}
		cold = append(cold, c)
	} else {
		fmt.Println("containerd is left out:", err)
	}
	for _, c := range cold {
		for range 2 {
			if c.argv != nil && c.err == nil {
				b.one(c)
			}
		}
		again = append(again, &contender{name: c.name, argv: c.argv, err: c.err})
	}
	b.table("image: cold pull and unpack from a loopback registry (2 runs, 45 s apart)", cold...)
	b.race("image: pull again, nothing changed", b.n, again...)
}

func (b *bench) startContainerd() ([]string, error) {
	dir := b.dir("containerd")
	conf := filepath.Join(dir, "config.toml")
	sock := filepath.Join(dir, "c.sock")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", dir+"/root", dir+"/state", sock)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	var log bytes.Buffer
	c := exec.Command("containerd", "--config", conf)
	c.Stderr = &log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := c.Start(); err != nil {
		return nil, err
	}
	b.containerd = c
	ctr := []string{"ctr", "--address", sock}
	for range 100 {
		if exec.Command(ctr[0], slices.Concat(ctr[1:], []string{"version"})...).Run() == nil {
			return ctr, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, fmt.Errorf("containerd did not answer: %s", lastLine(log.String()))
}
