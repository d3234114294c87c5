// Package deb reads and writes Debian binary packages and the text formats
// around them: package versions in dpkg's order, control stanzas, the .deb
// container.
//
// The formats are those of deb(5), deb-control(5), deb822(5), deb-version(7)
// and the Debian Policy Manual, chapter 5. Input is taken to be foreign: what
// is read into memory is bounded, and whatever is not as these sources have it
// ends in an error, never in a panic.
package deb
