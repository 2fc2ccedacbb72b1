package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"

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
