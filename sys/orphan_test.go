package sys

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestZombie(t *testing.T) {
	if pid, err := Zombie(); pid != 0 || err != nil {
		t.Fatalf("without children: got %d, %v", pid, err)
	}
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it is not reaped by looking
		if pid, err := Zombie(); pid != cmd.Process.Pid || err != nil {
			t.Errorf("got %d, %v, want %d", pid, err, cmd.Process.Pid)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if pid, err := Zombie(); pid != 0 || err != nil {
		t.Errorf("after the wait: got %d, %v", pid, err)
	}
}

func TestDropFilePages(t *testing.T) {
	for range 3 {
		if err := DropFilePages(); err != nil {
			t.Fatal(err)
		}
	}
	// We are still here: what was dropped came back.
}
