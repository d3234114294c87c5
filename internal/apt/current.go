package apt

import (
	"context"
	"fmt"
)

// validScript says whether a Release file does not say that it is valid no longer.
const validScript = `valid() {
	until=$(sed -n 's/^Valid-Until: *//p' "$1") && { [ -z "$until" ] || [ "$(date -d "$until" +%s)" -gt "$(date +%s)" ]; }
}
`

// currentScript compares lists of apt with what is there now: their names, URIs, and
// files to fetch these to by apt's helper, all at the same time. A server that keeps apt
// waiting is for apt to deal with. Proxies must not answer from what they have: that
// these are Release files, apt does not tell them here.
const currentScript = validScript + `current() {
	[ -f "$1" ] && digest=$(sha256sum <"$1") || exit 1
	valid "$1" &
	/usr/lib/apt/apt-helper -q -o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 \
		-o Acquire::http::No-Cache=true -o Acquire::https::No-Cache=true download-file "$2" "$3" "SHA256:${digest%% *}" && wait "$!"
	code=$?
	rm -f "$3"
	exit $code
}
cd /var/lib/apt/lists || exit 1
while [ $# -gt 0 ]; do
	current "$1" "$2" "$3" &
	all="${all-} $!"
	shift 3
done
for one in $all; do wait "$one" || exit 1; done`

// Current says whether the package lists in the root are those that the repositories
// have now: whether each of these, as it is called there, still publishes the very
// Release file that apt has checked once. That names the digests of all lists, and apt
// would but check its signatures anew, most of what apt-get update does then. False
// says that apt has to look: also where the Release file has run out, or is in the older
// form of two files, or on this machine's disk.
func (i Inside) Current(ctx context.Context, sources []Source) (bool, error) {
	args := []string{"sh", "-c", currentScript, "sh"}
	for n, s := range sources {
		if Directory(s.URI) != "" || s.Options["InRelease-Path"] != "" || s.Options["Valid-Until-Max"] != "" {
			return false, nil
		}
		args = append(args, releaseFile(s, "InRelease"), s.directory()+"InRelease", fmt.Sprintf("/tmp/InRelease-%d", n))
	}
	_, err := i.command(ctx, true, args...)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	return err == nil, nil
}
