package main

import (
	"strconv"
	"strings"
)

// flags is a parser for the syntax that runc's users and engines know: -name and --name are the same, a value follows
// "=" or is the next argument, and flags end at "--".
type flags struct{ list []flag }

type flag struct {
	names []string
	set   func(string) error
	value bool
}

func (f *flags) str(p *string, names ...string) {
	f.list = append(f.list, flag{names, func(s string) error { *p = s; return nil }, true})
}

func (f *flags) strs(p *[]string, names ...string) {
	f.list = append(f.list, flag{names, func(s string) error { *p = append(*p, s); return nil }, true})
}

func (f *flags) int(p *int, names ...string) {
	f.list = append(f.list, flag{names, func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return usageError("--"+names[0], strconv.Quote(s)+" is not a number")
		}
		*p = n
		return nil
	}, true})
}

func (f *flags) bool(p *bool, names ...string) {
	f.list = append(f.list, flag{names, func(s string) error {
		v, err := strconv.ParseBool(s)
		if err != nil {
			return usageError("--"+names[0], strconv.Quote(s)+" is not true or false")
		}
		*p = v
		return nil
	}, false})
}

// refuse names a flag that engines might give and that is not honoured yet.
func (f *flags) refuse(why string, value bool, names ...string) {
	f.list = append(f.list, flag{names, func(s string) error {
		if s == "" || s == "false" {
			return nil
		}
		return usageError("--"+names[0], why)
	}, value})
}

// parse returns what is not a flag. With anywhere, flags may follow arguments.
func (f *flags) parse(args []string, anywhere bool) (rest []string, err error) {
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			return append(rest, args[i+1:]...), nil
		}
		if len(a) < 2 || a[0] != '-' {
			if !anywhere {
				return append(rest, args[i:]...), nil
			}
			rest = append(rest, a)
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(a[1:], "-"), "=")
		found := f.find(name)
		switch {
		case found == nil:
			return nil, usageError(a, "there is no such flag")
		case found.value && !given:
			if i++; i == len(args) {
				return nil, usageError(a, "its value is missing")
			}
			value = args[i]
		case !found.value && !given:
			value = "true"
		}
		if err := found.set(value); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

func (f *flags) find(name string) *flag {
	for i := range f.list {
		for _, n := range f.list[i].names {
			if n == name {
				return &f.list[i]
			}
		}
	}
	return nil
}
