package launch

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

func jsonSpec(s *runspec.Spec) ([]byte, error) { return json.Marshal(s) }

func seeds(t testing.TB) [][]byte {
	out := [][]byte{
		[]byte(`{}`), []byte(`null`), []byte(`[]`), []byte(`{"process":null,"x":[1,2.5e3,{"a":"b"}],"root":{"path":"r"}}`),
		[]byte(`{"ociVersion":"1.0\u0032\n\"é","process":{"args":["a","b\\"],"user":{"uid":4294967295}}}`),
		[]byte(`{"linux":{"resources":{"devices":[{"allow":false,"access":"rwm","major":-1}],"memory":{"limit":1},"cpu":{"shares":2},"blockIO":{}}}}`),
		[]byte(`{"process":{"user":{"uid":-1}}}`), []byte(`{"a":`), []byte(`{"a":1}x`), []byte("{\"a\":\"\x01\"}"),
	}
	files, _ := filepath.Glob("testdata/*.json")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// FuzzDecodeSpec compares with encoding/json: what it refuses is refused; what both take is the same.
func FuzzDecodeSpec(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeSpec(b)
		var want runspec.Spec
		werr := json.Unmarshal(b, &want)
		if err != nil {
			return // stricter is fine: exact names, no bytes after NUL
		}
		if !json.Valid(b) {
			t.Fatalf("took invalid JSON %q (%v)", b, werr)
		}
		if werr != nil {
			t.Skipf("encoding/json: %v", werr)
		}
		// Names that differ in case only are ours to ignore: compare when the exact decoder sees all.
		x, _ := json.Marshal(got)
		y, _ := json.Marshal(&want)
		if string(x) != string(y) && exactNames(b) {
			t.Fatalf("%q:\n got %s\nwant %s", b, x, y)
		}
	})
}

// exactNames reports whether decoding and encoding b again keeps every name: no name differs by case, none is given
// twice (encoding/json merges then).
func exactNames(b []byte) bool {
	var v any
	if json.Unmarshal(b, &v) != nil {
		return false
	}
	var s runspec.Spec
	_ = json.Unmarshal(b, &s)
	again, _ := json.Marshal(&s)
	var w any
	_ = json.Unmarshal(again, &w)
	return reflect.DeepEqual(v, w)
}

func TestDecodeSpecAsEncodingJSON(t *testing.T) {
	for _, b := range seeds(t) {
		got, err := decodeSpec(b)
		var want runspec.Spec
		werr := json.Unmarshal(b, &want)
		if (err == nil) != (werr == nil) {
			t.Errorf("%.80q: got %v, want %v", b, err, werr)
		}
		if err == nil && !reflect.DeepEqual(*got, want) {
			t.Errorf("%.80q:\n got %+v\nwant %+v", b, *got, want)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	n, mask := -5, uint32(0)
	want := &record{
		Version: "1.2.0", ID: "a", Status: "created", Pid: 7, Started: 1 << 60, Bundle: "/b \"q\" é", Rootfs: "/r",
		Created: time.Unix(1700000000, 123).UTC(), Owner: 3, Cgroup: "/x", Terminal: true, NoKeyring: true,
		Namespaces: []runspec.LinuxNamespace{{Type: "pid"}, {Type: "network", Path: "/p"}}, Annotations: map[string]string{"k": "v"},
		Hooks: &runspec.Hooks{Poststop: []runspec.Hook{{Path: "/h"}}},
		Process: &runspec.Process{
			Args: []string{"a", "\n"}, Env: []string{"E=1"}, Cwd: "/", OOMScoreAdj: &n, NoNewPrivileges: true,
			User:         runspec.User{UID: 1, GID: 2, Umask: &mask, AdditionalGids: []uint32{3}},
			Capabilities: &runspec.LinuxCapabilities{Bounding: []string{"CAP_KILL"}},
			Rlimits:      []runspec.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 1<<64 - 1}},
		},
		Flags: 2, Steps: []string{"execute x"}, FirstStep: 9,
	}
	b, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) {
		t.Fatalf("not JSON: %s", b)
	}
	got, err := decodeRecord(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v (%v)\nwant %+v", got, err, want)
	}
}
