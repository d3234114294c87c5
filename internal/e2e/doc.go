// Package e2e holds the end-to-end tests: the built programs and scripts on real
// packages of the host's archive, with real apt, dkms and dpkg. They need root
// and the network, and are built with the tag e2e (see scripts/test).
package e2e
