package cli

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"
	"unicode"

	"github.com/onggi/onggi/errdefs"
)

// formatUsage is the help text of --format.
const formatUsage = "print as `format`: table, json, or a Go template such as '{{.ID}}'"

// format is how results are printed.
type format struct {
	json  bool
	table bool
	tmpl  *template.Template
}

// newFormat reads --format. Templates have docker's functions: json, join, lower, upper, title, split, pad, truncate, and Go's own: println, index, ...
func newFormat(s string, given bool) (format, error) {
	switch {
	case given && strings.TrimSpace(s) == "":
		return format{}, reading("--format", s, &errdefs.Error{Why: "the value is empty", Fix: "use table, json, or a template such as '{{.ID}}'"})
	case s == "" || s == "table":
		return format{table: true}, nil
	case s == "json":
		return format{json: true}, nil
	}
	text, table := strings.CutPrefix(s, "table ")
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err := template.New("format").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := marshal(v, "")
			return strings.TrimSuffix(string(b), "\n"), err
		},
		"title": titled, "pad": func(s string, before, after int) string {
			if s == "" {
				return s
			}
			return strings.Repeat(" ", clamp(before)) + s + strings.Repeat(" ", clamp(after))
		},
		"join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper, "split": strings.Split,
		"truncate": func(s string, n int) string {
			if r := []rune(s); n >= 0 && len(r) > n {
				return string(r[:n])
			}
			return s
		},
	}).Parse(text)
	if err != nil {
		return format{}, reading("--format", s, &errdefs.Error{Why: "it is not a Go template", Fix: "use table, json, or a template such as '{{.ID}}'", Err: err})
	}
	return format{table: table, tmpl: t}, nil
}

// clamp bounds what a template asks for.
func clamp(n int) int { return min(max(n, 0), 1024) }

// titled begins every word with a capital letter.
func titled(s string) string {
	before := ' '
	return strings.Map(func(r rune) rune {
		was := before
		before = r
		if !unicode.IsLetter(was) && !unicode.IsDigit(was) && was != '_' && was != '\'' {
			return unicode.ToTitle(r)
		}
		return r
	}, s)
}

// marshal is JSON as docker prints it: no HTML escapes, a line break at the end.
func marshal(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	err := e.Encode(v)
	return b.Bytes(), err
}

// execute runs the template on one value.
func (f format) execute(v any) (string, error) {
	var b strings.Builder
	if err := f.tmpl.Execute(&b, v); err != nil {
		return "", &errdefs.Error{Op: "use", What: "--format", Kind: errdefs.InvalidArgument, Err: err, Fix: "print the names that there are: --format json"}
	}
	return b.String() + "\n", nil
}

// column is one column of a table. Key is the field of T that it shows, for the headers of a "table {{...}}" template.
type column[T any] struct {
	header string
	get    func(T) string
}

// writeRows prints a list: a table, one JSON object a line, or a template's result for each row.
func writeRows[T any](a *app, f format, rows []T, columns []column[T]) error {
	var b strings.Builder
	switch {
	case f.json:
		for _, r := range rows {
			j, err := marshal(r, "")
			if err != nil {
				return err
			}
			b.Write(j)
		}
	case f.tmpl != nil:
		if f.table {
			h, err := f.execute(headers[T]())
			if err != nil {
				return err
			}
			b.WriteString(h)
		}
		for _, r := range rows {
			line, err := f.execute(r)
			if err != nil {
				return err
			}
			b.WriteString(line)
		}
		if f.table {
			return a.print(align(b.String()))
		}
	default:
		return a.print(table(rows, columns))
	}
	return a.print(b.String())
}

// table aligns columns as docker does: at least ten characters wide, three apart.
func table[T any](rows []T, columns []column[T]) string {
	var b strings.Builder
	for i, c := range columns {
		if i > 0 {
			b.WriteByte('\t')
		}
		b.WriteString(c.header)
	}
	b.WriteByte('\n')
	for _, r := range rows {
		for i, c := range columns {
			if i > 0 {
				b.WriteByte('\t')
			}
			b.WriteString(printable(c.get(r)))
		}
		b.WriteByte('\n')
	}
	return align(b.String())
}

func align(s string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 10, 1, 3, ' ', 0)
	_, _ = w.Write([]byte(s))
	_ = w.Flush()
	return b.String()
}

// headers maps the fields of a row to the headers that docker gives them: RunningFor becomes "RUNNING FOR".
func headers[T any]() headerRow {
	h := make(headerRow)
	t := reflect.TypeFor[T]()
	for i := range t.NumField() {
		if !t.Field(i).IsExported() {
			continue
		}
		name := t.Field(i).Name
		var b strings.Builder
		for j, c := range name {
			if j > 0 && c >= 'A' && c <= 'Z' && name[j-1] >= 'a' {
				b.WriteByte(' ')
			}
			b.WriteRune(c)
		}
		h[name] = strings.ToUpper(b.String())
	}
	var row T
	if own, ok := any(row).(interface{ headers() map[string]string }); ok {
		maps.Copy(h, own.headers())
	}
	return h
}

// headerRow stands for a row while the headers of a "table {{...}}" template are printed.
type headerRow map[string]string

// Label is the header of {{.Label "com.example.some-thing"}}: SOME THING.
func (headerRow) Label(name string) string {
	name = name[strings.LastIndexByte(name, '.')+1:]
	return strings.ToUpper(strings.NewReplacer("-", " ", "_", " ").Replace(name))
}
