package spec

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// same compares Encode with encoding/json, by what is read back.
func same(t *testing.T, what string, s *runspec.Spec) {
	t.Helper()
	want, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := json.Unmarshal(got, &a); err != nil {
		t.Fatalf("%s: %v in %s", what, err, got)
	}
	if err := json.Unmarshal(want, &b); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

// Every field that there is, set, and each one alone: a field of a later version of the specification fails here.
func TestEncode(t *testing.T) {
	var full runspec.Spec
	n := 0
	fill(reflect.ValueOf(&full).Elem(), &n)
	same(t, "all fields", &full)
	same(t, "no field", &runspec.Spec{})
	sections := []func(*runspec.Spec) any{
		func(s *runspec.Spec) any { return s },
		func(s *runspec.Spec) any { s.Process = &runspec.Process{}; return s.Process },
		func(s *runspec.Spec) any {
			s.Process = &runspec.Process{Capabilities: &runspec.LinuxCapabilities{}}
			return s.Process.Capabilities
		},
		func(s *runspec.Spec) any { s.Process = &runspec.Process{}; return &s.Process.User },
		func(s *runspec.Spec) any { s.Linux = &runspec.Linux{}; return s.Linux },
		func(s *runspec.Spec) any {
			s.Linux = &runspec.Linux{Resources: &runspec.LinuxResources{}}
			return s.Linux.Resources
		},
		func(s *runspec.Spec) any {
			s.Linux = &runspec.Linux{Seccomp: &runspec.LinuxSeccomp{}}
			return s.Linux.Seccomp
		},
		func(s *runspec.Spec) any {
			s.Linux = &runspec.Linux{Seccomp: &runspec.LinuxSeccomp{Syscalls: []runspec.LinuxSyscall{{Names: []string{}}}}}
			return &s.Linux.Seccomp.Syscalls[0]
		},
		func(s *runspec.Spec) any {
			s.Linux = &runspec.Linux{Devices: make([]runspec.LinuxDevice, 1)}
			return &s.Linux.Devices[0]
		},
		func(s *runspec.Spec) any { s.Mounts = make([]runspec.Mount, 1); return &s.Mounts[0] },
	}
	for _, section := range sections {
		typ := reflect.TypeOf(section(&runspec.Spec{})).Elem()
		for i := range typ.NumField() {
			s := &runspec.Spec{}
			fill(reflect.ValueOf(section(s)).Elem().Field(i), &n)
			same(t, typ.Name()+"."+typ.Field(i).Name, s)
		}
	}
}

// fill sets everything to something, with texts that need escaping among them.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 3 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(key, n)
			fill(value, n)
			v.SetMapIndex(key, value)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d%s", *n, []string{"", "\"\\\n\x01", "가\u2028<>&", "/a b"}[*n%4]))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(-*n))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Interface:
		v.Set(reflect.ValueOf("any"))
	default:
		panic(v.Kind())
	}
}
