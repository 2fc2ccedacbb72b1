package systemd

import (
	"encoding/binary"
	"errors"
)

// Types of messages and the header fields that are used (D-Bus specification, "Message Protocol").
const (
	methodCall   = 1
	methodReturn = 2
	methodError  = 3
	signalSent   = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSignature   = 8
)

// maxMessage bounds what is read: systemd's answers are a few hundred bytes.
const maxMessage = 1 << 20

// encoder writes values in D-Bus's form, little-endian, aligned from its start.
type encoder struct{ b []byte }

func (e *encoder) align(n int) {
	for len(e.b)%n != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) byte(v byte) { e.b = append(e.b, v) }

func (e *encoder) uint32(v uint32) {
	e.align(4)
	e.b = binary.LittleEndian.AppendUint32(e.b, v)
}

func (e *encoder) uint64(v uint64) {
	e.align(8)
	e.b = binary.LittleEndian.AppendUint64(e.b, v)
}

func (e *encoder) string(s string) {
	e.uint32(uint32(len(s)))
	e.b = append(append(e.b, s...), 0)
}

func (e *encoder) signature(s string) {
	e.byte(byte(len(s)))
	e.b = append(append(e.b, s...), 0)
}

// array writes the length in front of what fill writes; elements are aligned to n.
func (e *encoder) array(n int, fill func()) {
	e.uint32(0)
	at := len(e.b)
	e.align(n)
	from := len(e.b)
	fill()
	binary.LittleEndian.PutUint32(e.b[at-4:], uint32(len(e.b)-from))
}

// message is what was received.
type message struct {
	kind                    byte
	serial, reply           uint32
	path, iface             string
	member, name, signature string
	body                    []byte
}

var errMessage = errors.New("a malformed D-Bus message")

// decoder reads values; the first that does not fit sets bad, and all that follow are zero.
type decoder struct {
	b   []byte
	at  int
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b)-d.at {
		d.bad = true
		return nil
	}
	p := d.b[d.at : d.at+n]
	d.at += n
	return p
}

func (d *decoder) align(n int) {
	if r := d.at % n; r != 0 {
		d.take(n - r)
	}
}

func (d *decoder) byte() byte {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	d.align(4)
	if p := d.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) string() string {
	n := d.uint32()
	if n > maxMessage {
		d.bad = true
		return ""
	}
	s := string(d.take(int(n)))
	d.take(1)
	return s
}

func (d *decoder) signature() string {
	s := string(d.take(int(d.byte())))
	d.take(1)
	return s
}

// size returns how long a whole message is, from its first 16 bytes.
func size(head []byte) (int, error) {
	if len(head) < 16 || head[0] != 'l' || head[3] != 1 {
		return 0, errMessage // systemd answers in the byte order of its host, and all that we build for are little-endian
	}
	body, fields := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[12:])
	if body > maxMessage || fields > maxMessage {
		return 0, errMessage
	}
	return 16 + (int(fields)+7)&^7 + int(body), nil
}

// parse reads a whole message.
func parse(b []byte) (m message, err error) {
	n, err := size(b)
	if err != nil {
		return m, err
	}
	if n != len(b) {
		return m, errMessage
	}
	m.kind, m.serial = b[1], binary.LittleEndian.Uint32(b[8:])
	body := int(binary.LittleEndian.Uint32(b[4:]))
	end := 16 + int(binary.LittleEndian.Uint32(b[12:]))
	d := &decoder{b: b[:end], at: 16}
	for d.at < end && !d.bad {
		d.align(8)
		field := d.byte()
		switch kind := d.signature(); kind {
		case "s", "o":
			s := d.string()
			switch field {
			case fieldPath:
				m.path = s
			case fieldInterface:
				m.iface = s
			case fieldMember:
				m.member = s
			case fieldErrorName:
				m.name = s
			}
		case "g":
			s := d.signature()
			if field == fieldSignature {
				m.signature = s
			}
		case "u":
			n := d.uint32()
			if field == fieldReplySerial {
				m.reply = n
			}
		default:
			d.bad = true
		}
	}
	if d.bad {
		return m, errMessage
	}
	m.body = b[n-body:]
	return m, nil
}

// call makes a method call.
func call(serial uint32, destination, path, iface, member, signature string, body []byte) []byte {
	e := &encoder{b: make([]byte, 0, 256+len(body))}
	e.b = append(e.b, 'l', methodCall, 0, 1)
	e.uint32(uint32(len(body)))
	e.uint32(serial)
	e.array(8, func() {
		field := func(id byte, kind, value string) {
			e.align(8)
			e.byte(id)
			e.signature(kind)
			if kind == "g" {
				e.signature(value)
			} else {
				e.string(value)
			}
		}
		field(fieldPath, "o", path)
		field(fieldInterface, "s", iface)
		field(fieldMember, "s", member)
		field(fieldDestination, "s", destination)
		if signature != "" {
			field(fieldSignature, "g", signature)
		}
	})
	e.align(8)
	return append(e.b, body...)
}
