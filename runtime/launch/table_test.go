package launch

import (
	"encoding/json"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"strings"
	"testing"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// otherPlatforms are refused as a whole.
var otherPlatforms = map[string]bool{"solaris": true, "windows": true, "vm": true, "zos": true, "freebsd": true}

// fields lists the paths of all values below a type, as JSON has them: "mounts[].options".
func fields(name string, t reflect.Type, out map[string]bool) {
	switch t.Kind() {
	case reflect.Pointer:
		fields(name, t.Elem(), out)
	case reflect.Slice, reflect.Map:
		fields(name+"[]", t.Elem(), out)
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			n, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous:
				fields(name, f.Type, out)
			case otherPlatforms[n] && name == "":
				out[n] = true
			default:
				fields(strings.TrimPrefix(name+"."+n, "."), f.Type, out)
			}
		}
	default:
		out[strings.TrimSuffix(name, "[]")] = true
	}
}

// TestEveryFieldOfTheSpecificationIsInTheTable walks specs-go and reads doc/runtime.md: a field that the specification
// has and the table has not is one that would be ignored in silence, and a test that the table names must exist.
func TestEveryFieldOfTheSpecificationIsInTheTable(t *testing.T) {
	doc, err := os.ReadFile("../../doc/runtime.md")
	if err != nil {
		t.Skipf("the documents are not here: %v", err)
	}
	want := map[string]bool{}
	fields("", reflect.TypeFor[runspec.Spec](), want)
	have := map[string]bool{}
	_, table, _ := strings.Cut(string(doc), "| field | how it is done | test |\n|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	tests := regexp.MustCompile(`Test\w+`)
	for line := range strings.Lines(table) {
		columns := strings.Split(line, "|")
		if len(columns) != 5 {
			t.Fatalf("a row of %d columns: %s", len(columns)-2, line)
		}
		for i, token := range strings.Split(columns[1], "`") {
			if i%2 == 0 {
				continue
			}
			head, list, ok := strings.Cut(token, "{")
			if !ok {
				have[token] = true
				continue
			}
			for n := range strings.SplitSeq(strings.TrimSuffix(list, "}"), ",") {
				have[head+n] = true
			}
		}
		named := tests.FindAllString(columns[3], -1)
		if len(named) == 0 {
			t.Errorf("a row without a test: %s", columns[1])
		}
		for _, n := range named {
			if err := exec.Command("grep", "-rqE", "--include=*_test.go", "^func "+n+`\(`, "..", "../../cgroup", "../../cmd/onggi-runtime").Run(); err != nil {
				t.Errorf("the table names %s, which does not exist", n)
			}
		}
	}
	for f := range want {
		if !have[f] {
			t.Errorf("the specification's field %s is not in the table", f)
		}
	}
	for f := range have {
		if !want[f] {
			t.Errorf("the table's field %s is not in the specification", f)
		}
	}
}

// fill sets every value below v to something that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key").Convert(v.Type().Key()), e)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	}
}

// TestTheDecoderReadsEveryField: the decoder is written by hand, so a new field of the specification could pass it by.
func TestTheDecoderReadsEveryField(t *testing.T) {
	var want runspec.Spec
	fill(reflect.ValueOf(&want).Elem())
	b, err := json.Marshal(&want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeSpec(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(got)
	if err != nil || string(again) != string(b) {
		t.Errorf("%v\n got %s\nwant %s", err, again, b)
	}
}

// TestTheRecordKeepsTheProcess: exec begins with the container's own process section.
func TestTheRecordKeepsTheProcess(t *testing.T) {
	var p runspec.Process
	fill(reflect.ValueOf(&p).Elem())
	p.ConsoleSize, p.CommandLine, p.User.Username = nil, "", "" // of the first process only, and never there
	want := &record{ID: "a", Process: &p, RDT: &rdtRecord{Group: "g", Created: true, Monitor: "m"}}
	b, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got.Process, want.Process)
	}
}
