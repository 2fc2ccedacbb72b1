package test

import (
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptGit serves the repositories below a directory by git's smart protocol on loopback, and sets $NAME to the address:
//
//	gitserver NAME DIRECTORY [TOKEN]
//
// With a token only who sends it, as BuildKit does, is let in. The other files below the directory are there by plain GET.
func scriptGit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: gitserver NAME DIRECTORY [TOKEN]")
	}
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		ts.Fatalf("git is not installed: %v", err)
	}
	dir := ts.MkAbs(args[1])
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	files := http.FileServer(http.Dir(dir))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(args) > 2 {
			_, token, _ := r.BasicAuth()
			if subtle.ConstantTimeCompare([]byte(token), []byte(args[2])) != 1 {
				w.Header().Set("WWW-Authenticate", "Basic")
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
		}
		if strings.Contains(r.URL.Path, ".git/") {
			backend.ServeHTTP(w, r)
			return
		}
		files.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }()
	ts.Defer(func() { _ = srv.Close() })
	ts.Setenv(args[0], fmt.Sprintf("http://%s", l.Addr()))
}
