package cli

import (
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// parseSize reads a number of bytes as docker's users write it: 512m, 1.5g, 64MiB, 1048576, "32 kb". Units are powers
// of 1024 and their case does not matter. The result is at least 1 and at most 2^63-1; a fraction of a byte is cut
// off.
func parseSize(s string) (int64, error) {
	digits := 0
	for digits < len(s) && (s[digits] >= '0' && s[digits] <= '9' || s[digits] == '.') {
		digits++
	}
	number, unit := s[:digits], s[digits:]
	if strings.HasPrefix(s, "-") {
		return 0, fmt.Errorf("a size cannot be negative")
	}
	mult, ok := unitOf(strings.TrimPrefix(unit, " "))
	switch {
	case s == "":
		return 0, fmt.Errorf("a size cannot be empty")
	case number == "":
		return 0, fmt.Errorf("a size begins with a number")
	case !ok:
		return 0, fmt.Errorf("%q is not a unit: it can be b, k, m, g, t or p", unit)
	}
	whole, fraction, dot := strings.Cut(number, ".")
	if whole == "" || dot && fraction == "" || strings.Contains(fraction, ".") {
		return 0, fmt.Errorf("%q is not a number", number)
	}
	n, err := scaled(whole, fraction, mult)
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, fmt.Errorf("a size must be greater than zero")
	}
	return n, nil
}

// scaled computes whole.fraction * mult, rounded down, without floating point.
func scaled(whole, fraction string, mult uint64) (int64, error) {
	tooBig := fmt.Errorf("the size is greater than %d bytes", int64(math.MaxInt64))
	var w uint64
	for _, c := range whole {
		hi, lo := bits.Mul64(w, 10)
		sum, carry := bits.Add64(lo, uint64(c-'0'), 0)
		if hi != 0 || carry != 0 {
			return 0, tooBig
		}
		w = sum
	}
	hi, n := bits.Mul64(w, mult)
	if hi != 0 || n > math.MaxInt64 {
		return 0, tooBig
	}
	// 2^50 bytes times a fraction: digits after the 15th are below one byte.
	fraction = fraction[:min(len(fraction), 15)]
	var f, scale uint64 = 0, 1
	for _, c := range fraction {
		f, scale = f*10+uint64(c-'0'), scale*10
	}
	hi, lo := bits.Mul64(f, mult)
	q, _ := bits.Div64(hi, lo, scale) // f < scale, so hi < scale
	if n += q; n > math.MaxInt64 {
		return 0, tooBig
	}
	return int64(n), nil
}

// unitOf returns the bytes of one unit; "" is bytes.
func unitOf(unit string) (uint64, bool) {
	u := strings.ToLower(unit)
	switch u {
	case "", "b":
		return 1, true
	case "ib":
		return 0, false
	}
	if len(u) > 1 {
		u = strings.TrimSuffix(strings.TrimSuffix(u, "b"), "i")
	}
	switch u {
	case "k":
		return 1 << 10, true
	case "m":
		return 1 << 20, true
	case "g":
		return 1 << 30, true
	case "t":
		return 1 << 40, true
	case "p":
		return 1 << 50, true
	}
	return 0, false
}

// parseCPUs reads a number of processors ("0.5", "2") as billionths. It has at most nine decimals.
func parseCPUs(s string) (int64, error) {
	whole, fraction, dot := strings.Cut(s, ".")
	if strings.HasPrefix(s, "-") {
		return 0, fmt.Errorf("a number of processors cannot be negative")
	}
	if !allDigits(whole) && whole != "" || !allDigits(fraction) && fraction != "" || whole == "" && fraction == "" || dot && fraction == "" {
		return 0, fmt.Errorf("it is not a number")
	}
	if len(strings.TrimLeft(whole, "0")) > 6 {
		return 0, fmt.Errorf("there is no machine with that many processors")
	}
	if len(fraction) > 9 {
		return 0, fmt.Errorf("it has more than nine decimals")
	}
	var n int64
	for _, c := range whole + fraction + strings.Repeat("0", 9-len(fraction)) {
		n = n*10 + int64(c-'0')
	}
	if n == 0 {
		return 0, fmt.Errorf("a container without any processor time could never run")
	}
	return n, nil
}

// allDigits reports whether s consists of decimal digits and is not empty.
func allDigits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}

// parseInt reads a decimal number between min and max.
func parseInt(s string, min, max int64) (int64, error) {
	digits, negative := strings.CutPrefix(s, "-")
	if !allDigits(digits) {
		return 0, fmt.Errorf("it is not a whole number")
	}
	var n uint64
	for _, c := range digits {
		if n > math.MaxInt64/10 {
			return 0, fmt.Errorf("it is not between %d and %d", min, max)
		}
		n = n*10 + uint64(c-'0')
	}
	v := int64(n)
	if negative {
		v = -v
	}
	if n > math.MaxInt64 || v < min || v > max {
		return 0, fmt.Errorf("it is not between %d and %d", min, max)
	}
	return v, nil
}
