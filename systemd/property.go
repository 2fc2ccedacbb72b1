package systemd

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
)

// Property is one setting of a unit: its name, D-Bus signature and value.
type Property struct {
	Name      string
	signature string
	encode    func(*encoder)
}

// String is a property of type s.
func String(name, v string) Property {
	return Property{name, "s", func(e *encoder) { e.string(v) }}
}

// Bool is a property of type b.
func Bool(name string, v bool) Property {
	n := uint32(0)
	if v {
		n = 1
	}
	return Property{name, "b", func(e *encoder) { e.uint32(n) }}
}

// Uint64 is a property of type t: bytes, weights, µs.
func Uint64(name string, v uint64) Property {
	return Property{name, "t", func(e *encoder) { e.uint64(v) }}
}

// Pids is a property of type au.
func Pids(name string, pids ...int) Property {
	return Property{name, "au", func(e *encoder) {
		e.array(4, func() {
			for _, p := range pids {
				e.uint32(uint32(p))
			}
		})
	}}
}

// Bytes is a property of type ay: a set of CPUs or memory nodes, bit i of byte n is number 8n+i.
func Bytes(name string, v []byte) Property {
	return Property{name, "ay", func(e *encoder) { e.array(1, func() { e.b = append(e.b, v...) }) }}
}

// Pairs is a property of type a(ss): DeviceAllow.
func Pairs(name string, v [][2]string) Property {
	return Property{name, "a(ss)", func(e *encoder) {
		e.array(8, func() {
			for _, p := range v {
				e.align(8)
				e.string(p[0])
				e.string(p[1])
			}
		})
	}}
}

// properties writes an array of (name, variant) structures.
func properties(e *encoder, list []Property) {
	e.array(8, func() {
		for _, p := range list {
			e.align(8)
			e.string(p.Name)
			e.signature(p.signature)
			p.encode(e)
		}
	})
}

// ParseProperty reads a value in GVariant's text form: 'text' or "text", true, 5 (int32), uint64 5, 0.5 (double), and
// arrays of these: ['a', 'b']. A name that ends in Sec with a number is seconds, and becomes the USec property that systemd
// has on D-Bus, as runc does. Errors: InvalidArgument.
func ParseProperty(name, text string) (Property, error) {
	bad := func(why string) (Property, error) {
		return Property{}, &errdefs.Error{
			Op: "use the annotation", What: "org.systemd.property." + name, Kind: errdefs.InvalidArgument, Why: why,
			Fix: `write it in GVariant's text form, like "uint64 5", "true" or "'text'"`,
		}
	}
	for i, r := range name {
		if !(r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || i > 0 && r >= '0' && r <= '9') {
			return bad("its name is not a property's")
		}
	}
	if name == "" || len(name) > 128 || len(text) > 64<<10 {
		return bad("it is empty or too long")
	}
	p := &textParser{s: strings.TrimSpace(text)}
	v, ok := p.value()
	if !ok || p.s != "" {
		return bad(strconv.Quote(text) + " is not a value")
	}
	if base, isSec := strings.CutSuffix(name, "Sec"); isSec && !strings.HasSuffix(name, "USec") {
		s, ok := v.seconds()
		if !ok {
			return bad("a time in seconds is a number of 0 or more")
		}
		return Uint64(base+"USec", s), nil
	}
	return Property{name, v.signature, v.encode}, nil
}

// value is a parsed value; number is its worth when it is one.
type value struct {
	signature string
	encode    func(*encoder)
	number    float64
}

func (v value) seconds() (usec uint64, ok bool) {
	switch v.signature {
	case "n", "q", "i", "u", "x", "t", "d":
		if v.number < 0 || v.number > 1e13 {
			return 0, false
		}
		return uint64(math.Round(v.number * 1e6)), true
	}
	return 0, false
}

type textParser struct{ s string }

func (p *textParser) space() { p.s = strings.TrimLeft(p.s, " \t\n") }

// word takes letters, digits and signs.
func (p *textParser) word() string {
	n := 0
	for n < len(p.s) && (p.s[n] >= 'a' && p.s[n] <= 'z' || p.s[n] >= 'A' && p.s[n] <= 'Z' || p.s[n] >= '0' && p.s[n] <= '9' ||
		strings.IndexByte("+-._", p.s[n]) >= 0) {
		n++
	}
	w := p.s[:n]
	p.s = p.s[n:]
	p.space()
	return w
}

var integers = map[string]struct {
	signature string
	bits      int
	signed    bool
}{
	"byte": {"y", 8, false}, "int16": {"n", 16, true}, "uint16": {"q", 16, false}, "int32": {"i", 32, true},
	"uint32": {"u", 32, false}, "int64": {"x", 64, true}, "uint64": {"t", 64, false},
}

func (p *textParser) value() (v value, ok bool) {
	p.space()
	if p.s == "" {
		return v, false
	}
	switch p.s[0] {
	case '\'', '"':
		s, ok := p.quoted()
		return value{signature: "s", encode: func(e *encoder) { e.string(s) }}, ok
	case '[':
		return p.list()
	}
	switch w := p.word(); w {
	case "":
		return v, false
	case "true", "false":
		b := Bool("", w == "true")
		return value{signature: "b", encode: b.encode}, true
	case "double":
		return number(p.word(), "double")
	case "byte", "int16", "uint16", "int32", "uint32", "int64", "uint64":
		return number(p.word(), w)
	default:
		if strings.ContainsAny(w, ".eE") && !strings.HasPrefix(strings.ToLower(w), "0x") {
			return number(w, "double")
		}
		return number(w, "int32")
	}
}

func number(w, kind string) (v value, ok bool) {
	if kind == "double" {
		f, err := strconv.ParseFloat(w, 64)
		if err != nil {
			return v, false
		}
		return value{"d", func(e *encoder) { e.uint64(math.Float64bits(f)) }, f}, true
	}
	k := integers[kind]
	var bits uint64
	var worth float64
	if k.signed {
		n, err := strconv.ParseInt(w, 0, k.bits)
		if err != nil {
			return v, false
		}
		bits, worth = uint64(n), float64(n)
	} else {
		n, err := strconv.ParseUint(w, 0, k.bits)
		if err != nil {
			return v, false
		}
		bits, worth = n, float64(n)
	}
	return value{k.signature, func(e *encoder) {
		e.align(k.bits / 8)
		e.b = append(e.b, binary.LittleEndian.AppendUint64(nil, bits)[:k.bits/8]...)
	}, worth}, true
}

func (p *textParser) quoted() (string, bool) {
	q := p.s[0]
	var b strings.Builder
	for i := 1; i < len(p.s); i++ {
		switch c := p.s[i]; {
		case c == q:
			p.s = p.s[i+1:]
			p.space()
			return b.String(), true
		case c == '\\' && i+1 < len(p.s):
			i++
			switch p.s[i] {
			case 'n':
				b.WriteByte('\n')
			case 't':
				b.WriteByte('\t')
			case '\\', '\'', '"':
				b.WriteByte(p.s[i])
			default:
				return "", false
			}
		case c == 0:
			return "", false
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// list reads an array whose elements have all the type of the first.
func (p *textParser) list() (v value, ok bool) {
	p.s = p.s[1:]
	p.space()
	var all []value
	for !strings.HasPrefix(p.s, "]") {
		if len(all) > 0 {
			if !strings.HasPrefix(p.s, ",") {
				return v, false
			}
			p.s = p.s[1:]
		}
		p.space()
		if strings.HasPrefix(p.s, "[") { // no property that can be set is an array of arrays
			return v, false
		}
		e, ok := p.value()
		if !ok || len(all) > 0 && e.signature != all[0].signature {
			return v, false
		}
		all = append(all, e)
	}
	p.s = p.s[1:]
	p.space()
	if len(all) == 0 {
		return v, false // its type cannot be known
	}
	n := 4
	switch all[0].signature {
	case "x", "t", "d":
		n = 8
	case "y":
		n = 1
	case "n", "q":
		n = 2
	}
	return value{signature: "a" + all[0].signature, encode: func(e *encoder) {
		e.array(n, func() {
			for _, x := range all {
				x.encode(e)
			}
		})
	}}, true
}
