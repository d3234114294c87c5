module dkms2bin

go 1.26.0

require (
	github.com/google/renameio/v2 v2.0.2
	github.com/klauspost/compress v1.20.3
	github.com/klauspost/pgzip v1.3.0
	github.com/mikelolasagasti/xz v1.0.1
	github.com/peterbourgon/ff/v3 v3.4.0
	golang.org/x/sys v0.49.0
)

require go.yaml.in/yaml/v3 v3.0.6

require (
	github.com/google/go-cmp v0.5.9 // indirect
	gotest.tools/v3 v3.5.2
)
