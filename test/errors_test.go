package test

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// importBusybox gives the host an image named bb.
func importBusybox(t *testing.T, h *host) {
	t.Helper()
	h.onggi("import", busyboxTar(t), "bb")
}

// traces lists every file below the roots that may remain after a failure must have left nothing: all but empty
// directories, locks and the store's own records.
func traces(t *testing.T, h *host) []string {
	t.Helper()
	var found []string
	for _, dir := range []string{filepath.Join(h.root, "containers"), filepath.Join(h.root, "names"), filepath.Join(h.run, "containers"), filepath.Join(h.root, "content", "ingest")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found
}

// TestErrors: each failure ends with what, why and the fix, the exit code that docker's users know, within a bounded
// time, and leaves no trace.
func TestErrors(t *testing.T) {
	h := newHost(t)
	importBusybox(t, h)
	h.onggi("run", "-d", "--network", "none", "--name", "taken", "bb", "sleep", "1000")

	broken := brokenRegistry(t)
	for _, c := range []struct {
		name string
		args []string
		code int
		want string // in stderr
		fix  bool   // a fix must be printed
	}{
		{"command not found", []string{"run", "--rm", "--network", "none", "bb", "no-such-command"}, 127, "no-such-command", false},
		{"path not found", []string{"run", "--rm", "--network", "none", "bb", "/no/such/path"}, 127, "/no/such/path", false},
		{"not executable", []string{"run", "--rm", "--network", "none", "bb", "/etc/passwd"}, 126, "/etc/passwd", false},
		{"a directory", []string{"run", "--rm", "--network", "none", "bb", "/etc"}, 126, "/etc", false},
		{"no command", []string{"run", "--rm", "--network", "none", "bb"}, 125, "command", true},
		{"name in use", []string{"run", "--rm", "--network", "none", "--name", "taken", "bb", "true"}, 125, "taken", true},
		{"bad name", []string{"run", "--name", "a/b", "bb", "true"}, 125, "a/b", false},
		{"unknown flag", []string{"run", "--no-such-flag", "bb", "true"}, 125, "no-such-flag", false},
		{"negative memory", []string{"run", "--memory", "-5m", "bb", "true"}, 125, "memory", false},
		{"tiny memory", []string{"run", "--memory", "1k", "bb", "true"}, 125, "memory", false},
		{"bad memory", []string{"run", "--memory", "lots", "bb", "true"}, 125, "lots", false},
		{"too many cpus", []string{"run", "--network", "none", "--cpus", "10000", "bb", "true"}, 125, "cpus", false},
		{"bad port", []string{"run", "-p", "99999:80", "bb", "true"}, 125, "99999", false},
		{"bad network", []string{"run", "--network", "no-such-network", "bb", "true"}, 125, "no-such-network", false},
		{"bad capability", []string{"run", "--network", "none", "--cap-add", "FLY", "bb", "true"}, 125, "FLY", false},
		{"bad user", []string{"run", "--rm", "--network", "none", "-u", "nobody-here", "bb", "true"}, 125, "nobody-here", false},
		{"user id too large", []string{"run", "--rm", "--network", "none", "-u", "4294967296", "bb", "true"}, 125, "4294967296", false},
		{"mount source missing", []string{"run", "--rm", "--network", "none", "--mount", "type=bind,src=/no/such,dst=/x", "bb", "true"}, 125, "/no/such", false},
		{"relative target", []string{"run", "--network", "none", "-v", "/tmp:relative", "bb", "true"}, 125, "relative", false},
		{"seccomp file missing", []string{"run", "--network", "none", "--security-opt", "seccomp=/no/such", "bb", "true"}, 125, "/no/such", false},
		{"unknown security option", []string{"run", "--network", "none", "--security-opt", "magic=on", "bb", "true"}, 125, "magic", false},
		{"sysctl of the host", []string{"run", "--network", "none", "--sysctl", "kernel.panic=1", "bb", "true"}, 125, "kernel.panic", false},
		{"pid file in no directory", []string{"run", "--pidfile", "/no/such/file", "bb", "true"}, 125, "/no/such", true},
		{"pid file is a directory", []string{"run", "--pidfile", "/tmp", "bb", "true"}, 125, "/tmp", true},
		{"container id file in no directory", []string{"run", "--cidfile", "/no/such/file", "bb", "true"}, 125, "/no/such", true},
		{"a device that is none", []string{"run", "--device", "/no/such", "bb", "true"}, 125, "/no/such", true},
		{"bad search domain", []string{"run", "--dns-search", "a/b", "bb", "true"}, 125, "a/b", true},
		{"empty memory", []string{"run", "--memory", "", "bb", "true"}, 125, "memory", true},
		{"root is a file", []string{"--root", "/etc/passwd", "run", "bb", "true"}, 125, "/etc/passwd", true},
		{"run root is a file", []string{"--run-root", "/etc/passwd", "run", "bb", "true"}, 125, "/etc/passwd", true},
		{"bad image name", []string{"run", "Bad Image", "true"}, 125, "Bad Image", false},
		{"pull never", []string{"run", "--pull", "never", "nowhere/nothing", "true"}, 125, "nowhere/nothing", true},
		{"unreachable registry", []string{"run", "127.0.0.1:1/x", "true"}, 125, "127.0.0.1:1", true},
		{"no such repository", []string{"run", broken + "/missing", "true"}, 125, "missing", true},
		{"registry fails", []string{"pull", broken + "/five-hundred"}, 1, "500", true},
		{"manifest is garbage", []string{"pull", broken + "/garbage"}, 1, "garbage", false},
		{"unknown container", []string{"start", "no-such"}, 1, "no-such", false},
		{"exec in unknown", []string{"exec", "no-such", "true"}, 1, "no-such", false},
		{"logs of unknown", []string{"logs", "no-such"}, 1, "no-such", false},
		{"rm of running", []string{"rm", "taken"}, 1, "taken", true},
		{"unknown command", []string{"rnu"}, 1, "run", false},
		{"unknown image", []string{"rmi", "no-such"}, 1, "no-such", false},
		{"image in use", []string{"rmi", "bb"}, 1, "bb", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := traces(t, h)
			start := time.Now()
			r := h.try(c.args...)
			if r.code != c.code {
				t.Errorf("exit code %d, want %d", r.code, c.code)
			}
			if !strings.Contains(r.err, c.want) {
				t.Errorf("the message does not name %q", c.want)
			}
			if c.fix && !strings.Contains(r.err, "fix: ") {
				t.Errorf("no fix is given")
			}
			if !strings.Contains("\n"+r.err, "\nonggi: ") { // a pull has told what it does before
				t.Errorf("the message does not begin with the program's name")
			}
			if d := time.Since(start); d > 60*time.Second {
				t.Errorf("it took %v", d)
			}
			if after := traces(t, h); len(after) > len(before) && !strings.HasPrefix(c.name, "bad") {
				t.Errorf("left behind: %v, before: %v", after, before)
			}
			if t.Failed() {
				t.Logf("onggi %s\nstdout: %s\nstderr: %s", strings.Join(c.args, " "), r.out, r.err)
			}
		})
	}
	h.onggi("rm", "-f", "taken")
	if left := traces(t, h); len(left) > 0 {
		t.Errorf("left at the end: %v", left)
	}
}

// brokenRegistry answers in ways that a registry must not.
func brokenRegistry(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v2/":
		case strings.Contains(r.URL.Path, "five-hundred"):
			http.Error(w, "the disk is on fire", http.StatusInternalServerError)
		case strings.Contains(r.URL.Path, "garbage"):
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			_, _ = w.Write([]byte("{garbage"))
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}`))
		}
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

// TestFullDisk: a store on a full file system says so, and keeps nothing of the attempt.
func TestFullDisk(t *testing.T) {
	tar := busyboxTar(t)
	h := newHost(t)
	if err := os.MkdirAll(h.root, 0o700); err != nil {
		t.Fatal(err)
	}
	sh(t, "mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", h.root)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", h.root).Run() })
	r := h.try("import", tar, "bb")
	if r.code == 0 || !strings.Contains(r.err, "no space") {
		t.Errorf("exit code %d, stderr %q: want a message about space", r.code, r.err)
	}
	if out := h.onggi("images", "-q"); out != "" {
		t.Errorf("an image remains: %s", out)
	}
	if kb := strings.Fields(sh(t, "du", "-sk", h.root))[0]; len(kb) > 3 {
		t.Errorf("%s KiB remain of the attempt:\n%s", kb, sh(t, "du", "-k", "-d", "4", h.root))
	}
}
