package sys

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestEndedChildSeesAndLeavesIt(t *testing.T) {
	c := exec.Command("/bin/true")
	if err := c.Start(); err != nil {
		t.Skip(err)
	}
	got := 0
	for i := 0; got == 0 && i < 1000; i++ {
		var err error
		if got, err = EndedChild(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if got != c.Process.Pid {
		t.Errorf("EndedChild() = %d, want %d", got, c.Process.Pid)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("it was reaped: %v", err)
	}
	if pid, err := EndedChild(); err != unix.ECHILD && (err != nil || pid != 0) {
		t.Errorf("EndedChild() = %d, %v without a child", pid, err)
	}
}
