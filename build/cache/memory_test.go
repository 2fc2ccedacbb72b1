package cache

import (
	"fmt"
	"os"
	"testing"
)

func TestMemory(t *testing.T) {
	m, err := store(t).Memory("things", 10)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	if m.Get("a", &got) {
		t.Error("something is known of the begin of time")
	}
	if err := m.Put("a", []string{"x"}); err != nil || !m.Get("a", &got) || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
	if err := os.WriteFile(m.Path("a"), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m.Get("a", &got) {
		t.Errorf("a broken file says %v", got)
	}
	for i := range 50 {
		if err := m.Put(fmt.Sprint(i), i); err != nil {
			t.Fatal(err)
		}
	}
	es, err := os.ReadDir(m.dir)
	if err != nil || len(es) > 20 || len(es) < 10 {
		t.Errorf("%d files are kept, %v", len(es), err)
	}
	n := 0
	if !m.Get("49", &n) || n != 49 {
		t.Errorf("the newest says %d", n)
	}
	if err := m.Put("large", make([]byte, maxMemory)); err != nil || m.Get("large", &got) {
		t.Errorf("what is too large is kept, or an error: %v", err)
	}
}
