package criu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/onggi/onggi/errdefs"
)

func TestVersion(t *testing.T) {
	if _, err := exec.LookPath("criu"); err != nil {
		t.Skip("criu is not installed")
	}
	v, err := Version("criu")
	if err != nil || v < 30000 || v > 100000 {
		t.Errorf("Version() = %d, %v", v, err)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	_, err := Version("/nope/criu")
	if !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), "/nope/criu") || errdefs.FixOf(err) == "" {
		t.Errorf("no program: %v", err)
	}
	_, err = Version("/bin/true") // ends without an answer
	if err == nil || !strings.Contains(err.Error(), "without an answer") && !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("a program that is not CRIU: %v", err)
	}
}

// TestErrorsOfTheLog: CRIU's last errors are in ours.
func TestErrorsOfTheLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "dump.log")
	text := "(00.1) Warn  (criu/x.c:1): nothing\n(00.2) Error (criu/a.c:1): one\n(00.2) Error (criu/b.c:2): two\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := logged(name); err == nil || err.Error() != "one; two" {
		t.Errorf("logged: %v", err)
	}
	if err := logged(name + ".none"); err != nil {
		t.Errorf("without a log: %v", err)
	}
}

// FuzzResponse: whatever CRIU sends, the parser does not panic.
func FuzzResponse(f *testing.F) {
	b, _ := (&rpc.CriuResp{Type: ptr(rpc.CriuReqType_NOTIFY), Success: ptr(true), Notify: &rpc.CriuNotify{Script: ptr("post-dump"), Pid: ptr(int32(1))}}).MarshalVT()
	f.Add(b)
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &rpc.CriuResp{}
		if r.UnmarshalVT(b) == nil {
			_ = r.GetNotify().GetScript()
			_ = r.GetVersion().GetMajorNumber()
		}
	})
}
