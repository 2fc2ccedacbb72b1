package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// startRegistry runs Debian's docker-registry on a free loopback port for the length of the test.
func startRegistry(t *testing.T) string {
	t.Helper()
	needs(t, "docker-registry")
	addr, end, err := runRegistry(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	return addr
}

// scriptRegistry is the stories' command "registry".
func scriptRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) > 2 {
		ts.Fatalf("usage: registry NAME [auth]")
	}
	if _, err := exec.LookPath("docker-registry"); err != nil {
		ts.Fatalf("docker-registry is not installed (apt-get install docker-registry)")
	}
	dir := ts.MkAbs("registry-" + args[0])
	ts.Check(os.Mkdir(dir, 0o700))
	more := ""
	if len(args) == 2 {
		more = fmt.Sprintf("auth: {htpasswd: {realm: jar, path: %s/htpasswd}}\n", dir)
		ts.Check(os.WriteFile(dir+"/htpasswd", []byte("jar:$2b$04$Qeo4DoFUUZT41pNdq6ATo.SPPL.HjFsSGg4uQXLGijuodTnDaVIXK\n"), 0o600))
	}
	addr, end, err := runRegistry(dir, more)
	ts.Check(err)
	ts.Defer(end)
	ts.Setenv(args[0], addr)
}

// runRegistry starts docker-registry with its data in dir and more in its configuration.
func runRegistry(dir, more string) (addr string, end func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = l.Addr().String()
	_ = l.Close()
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n%s", dir, addr, more)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return "", nil, err
	}
	c := exec.Command("docker-registry", "serve", conf)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return "", nil, err
	}
	end = func() { _ = c.Process.Kill(); _ = c.Wait() }
	for range 400 {
		r, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			_ = r.Body.Close()
			return addr, end, nil
		}
		time.Sleep(25 * time.Millisecond)
	}
	end()
	return "", nil, fmt.Errorf("the registry at %s does not answer", addr)
}

// pushDebian pushes the Debian image of two layers that scripts/debian-image has made with mmdebstrap and umoci (the
// directory ONGGI_TEST_DEBIAN) with skopeo. It returns the image's name.
func pushDebian(t *testing.T, addr string) string {
	t.Helper()
	needs(t, "skopeo")
	layout := os.Getenv("ONGGI_TEST_DEBIAN")
	if _, err := os.Stat(filepath.Join(layout, "index.json")); err != nil {
		t.Skip("no Debian image: ONGGI_TEST_DEBIAN names none (`make test` makes one with mmdebstrap)")
	}
	name := addr + "/debian:12"
	sh(t, "skopeo", "copy", "--dest-tls-verify=false", "oci:"+layout+":12", "docker://"+name)
	return name
}

// dialEventually connects to a published port that is about to listen.
func dialEventually(t *testing.T, addr string) string {
	t.Helper()
	var body string
	client := http.Client{Timeout: 2 * time.Second}
	eventually(t, "http://"+addr+" answers", func() bool {
		r, err := client.Get("http://" + addr + "/")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b := make([]byte, 4096)
		n, _ := r.Body.Read(b)
		body = string(b[:n])
		return r.StatusCode == 200
	})
	return body
}
