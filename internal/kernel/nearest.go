package kernel

import (
	"cmp"
	"slices"
	"strings"
)

// Nearest returns at most n of the kernel releases in have, the nearest to want first: of the same
// flavour first, then by the distance of the base version, then of the number after it (Debian's and
// Ubuntu's ABI number). Where two are equally far the newer one comes first. It is for messages.
func Nearest(want string, have []string, n int) []string {
	wanted := parseRelease(want)
	list := make([]release, 0, len(have))
	for _, name := range have {
		list = append(list, parseRelease(name))
	}
	slices.SortFunc(list, func(a, b release) int {
		return cmp.Or(
			compareBool(a.flavour != wanted.flavour, b.flavour != wanted.flavour),
			slices.Compare(a.distance(wanted), b.distance(wanted)),
			slices.Compare(b.numbers, a.numbers),
			cmp.Compare(a.name, b.name),
		)
	})
	names := make([]string, 0, len(list))
	for _, r := range list {
		names = append(names, r.name)
	}
	names = slices.Compact(names)
	return names[:min(max(n, 0), len(names))]
}

// Flavour returns the flavour in a kernel's release, as amd64 in 6.1.0-56-amd64
// and cloud-amd64 in 6.12.48+deb13-cloud-amd64; "" for one without.
func Flavour(release string) string { return parseRelease(release).flavour }

// CompareReleases orders kernel releases by their numbers, the older one first,
// and release candidates before their release: -1, 0 or +1.
func CompareReleases(a, b string) int {
	return slices.Compare(parseRelease(a).order(), parseRelease(b).order())
}

// order is what releases are ordered by. After the numbers of the base there is
// -1 for a release candidate and 0 otherwise.
func (r release) order() []int64 {
	mark := int64(-1)
	base, rest, candidate := strings.Cut(r.name, "-rc")
	if !candidate {
		mark = 0
		base, rest, _ = strings.Cut(r.name, "-")
	}
	return append(append(numbers(base), mark), numbers(strings.TrimSuffix(rest, r.flavour))...)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// A release is a kernel's release, taken apart.
type release struct {
	name    string
	numbers []int64 // 6.1.0-56-amd64: 6 1 0 56
	flavour string  // amd64, cloud-amd64, 686-pae
}

// parseRelease splits BASE[-rcN][-ABI][-FLAVOUR]. A flavour may begin with a digit (686-pae): what stands
// alone after the base is taken for the ABI, unless the base ends like Debian's newer ones (6.12.117+deb13).
func parseRelease(name string) release {
	parts := strings.Split(name, "-")
	version := parts[:1]
	rest := parts[1:]
	if len(rest) > 0 && strings.HasPrefix(rest[0], "rc") {
		version, rest = parts[:2], parts[2:]
	}
	if len(rest) > 0 && startsWithDigit(rest[0]) && !strings.Contains(parts[0], "+deb") {
		version, rest = parts[:len(version)+1], rest[1:]
	}
	return release{
		name:    name,
		numbers: numbers(strings.Join(version, "-")),
		flavour: strings.Join(rest, "-"),
	}
}

func startsWithDigit(s string) bool { return s != "" && '0' <= s[0] && s[0] <= '9' }

// numbers returns the decimal numbers in s; a huge one counts as 1<<40.
func numbers(s string) []int64 {
	var list []int64
	in := false
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			in = false
			continue
		}
		if !in {
			list = append(list, 0)
		}
		in = true
		last := &list[len(list)-1]
		*last = min(*last*10+int64(c-'0'), 1<<40)
	}
	return list
}

// distance says for each number how far it is off; a missing one counts as 0.
func (r release) distance(from release) []int64 {
	list := make([]int64, max(len(r.numbers), len(from.numbers)))
	for i := range list {
		var a, b int64
		if i < len(r.numbers) {
			a = r.numbers[i]
		}
		if i < len(from.numbers) {
			b = from.numbers[i]
		}
		list[i] = max(a-b, b-a)
	}
	return list
}
