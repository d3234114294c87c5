package deb

// Fulfils says whether a version fulfils a relation such as "(>= 1.0)", Debian Policy
// 7.1. Without an operator every version does, and without a version, as that of a
// Provides may be, nothing that asks for one. An operator that is none refuses nothing.
func Fulfils(version, operator, wanted string) bool {
	if operator == "" {
		return true
	}
	if version == "" {
		return false
	}
	c := CompareVersions(version, wanted)
	switch operator {
	case "=":
		return c == 0
	case "<<":
		return c < 0
	case "<=", "<":
		return c <= 0
	case ">=", ">":
		return c >= 0
	case ">>":
		return c > 0
	}
	return true
}
