package sys_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/sys"
	"golang.org/x/sys/unix"
)

func send(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := unix.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c *sys.Caught, n int) []byte {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, n)
	if got, err := io.ReadFull(c, b); err != nil {
		t.Fatalf("%d of %d signals arrived: %v", got, n, err)
	}
	return b
}

func TestCatch(t *testing.T) {
	list := []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGTERM, 34, 64}
	c, err := sys.Catch(false, list...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	for _, s := range list {
		send(t, s)
		if got := read(t, c, 1); got[0] != byte(s) {
			t.Errorf("sent %d, read %d", s, got[0])
		}
	}
	if _, err := sys.Catch(true, 65); err == nil && (runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64") {
		t.Error("there is no signal 65, and it was caught")
	}
}

// Two sets are independent, and what is discarded does nothing.
func TestCatchTwoSets(t *testing.T) {
	a, err := sys.Catch(false, syscall.SIGUSR1)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	b, err := sys.Catch(false, syscall.SIGUSR2)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	none, err := sys.Catch(true, syscall.SIGTERM, syscall.SIGHUP)
	if err != nil {
		t.Fatal(err)
	}
	defer none.Release()
	send(t, syscall.SIGTERM)
	send(t, syscall.SIGHUP)
	send(t, syscall.SIGUSR2)
	send(t, syscall.SIGUSR1)
	if x, y := read(t, a, 1), read(t, b, 1); x[0] != byte(syscall.SIGUSR1) || y[0] != byte(syscall.SIGUSR2) {
		t.Errorf("read %d and %d", x[0], y[0])
	}
}

// A handler that runs anywhere must disturb nothing: system calls go on, stacks grow and move, garbage is collected.
func TestCatchStorm(t *testing.T) {
	c, err := sys.Catch(false, syscall.SIGUSR1, 40)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got := deep(200, 1.5); got != 200*1.5 {
					t.Errorf("deep counted %v", got)
					return
				}
				runtime.GC()
			}
		})
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	read1 := make(chan error, 1)
	go func() { // a blocked system call is not interrupted
		b := make([]byte, 1)
		_, err := unix.Read(p[0], b)
		read1 <- err
	}()
	const n = 5000
	got := make(chan int)
	go func() {
		sum, b := 0, make([]byte, 512)
		for sum < n {
			k, err := c.Read(b)
			if err != nil {
				break
			}
			for _, x := range b[:k] {
				if x == 40 { // real-time signals are queued, not merged (signal(7))
					sum++
				}
			}
		}
		got <- sum
	}()
	for range n {
		send(t, syscall.SIGUSR1)
		for {
			err := unix.Kill(os.Getpid(), 40)
			if err == nil {
				break
			}
			if err != unix.EAGAIN { // the queue is full (RLIMIT_SIGPENDING)
				t.Fatal(err)
			}
		}
	}
	if sum := <-got; sum != n {
		t.Errorf("%d of %d signals were read", sum, n)
	}
	close(stop)
	wg.Wait()
	_, _ = unix.Write(p[1], []byte{1})
	if err := <-read1; err != nil {
		t.Errorf("a blocked read: %v", err)
	}
}

//go:noinline
func deep(n int, x float64) float64 {
	var pad [64]float64
	pad[n%64] = x
	if n == 1 {
		return pad[1]
	}
	return pad[n%64] + deep(n-1, x)
}

// After Release a signal does what it did before, and a child inherits nothing of all this.
func TestRelease(t *testing.T) {
	if mode := os.Getenv("ONGGI_TEST_CATCH"); mode != "" {
		c, err := sys.Catch(mode == "discard", syscall.SIGTERM)
		if err != nil {
			os.Exit(3)
		}
		if mode == "release" {
			c.Release()
		}
		if mode == "exec" {
			_ = syscall.Exec("/bin/sh", []string{"sh", "-c", "kill -TERM $$; exit 5"}, os.Environ())
		}
		_ = unix.Kill(os.Getpid(), unix.SIGTERM)
		time.Sleep(50 * time.Millisecond)
		os.Exit(4)
	}
	for mode, want := range map[string]string{"discard": "exit status 4", "release": "signal: terminated", "exec": "signal: terminated"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestRelease$")
		cmd.Env = append(os.Environ(), "ONGGI_TEST_CATCH="+mode)
		err := cmd.Run()
		var e *exec.ExitError
		if !errors.As(err, &e) || e.Error() != want {
			t.Errorf("%s: got %v, want %s", mode, err, want)
		}
	}
}

func TestReleaseEndsReader(t *testing.T) {
	c, err := sys.Catch(false, syscall.SIGUSR1)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	time.Sleep(time.Millisecond)
	c.Release()
	if err := <-ended; !slices.ContainsFunc([]error{os.ErrClosed, io.EOF}, func(e error) bool { return errors.Is(err, e) }) {
		t.Errorf("the reader ended with %v", err)
	}
}
