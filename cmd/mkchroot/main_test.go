package main

import (
	"testing"

	"gotest.tools/v3/assert"
)

func TestParseSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"0": 0, "123": 123, "500M": 500 << 20, "20G": 20 << 30, "20GB": 20 << 30, "20GiB": 20 << 30, "3T": 3 << 40, "7K": 7 << 10, "1B": 1,
	} {
		got, err := parseSize(text)
		assert.NilError(t, err)
		assert.Equal(t, got, want, text)
	}
	for _, text := range []string{"", "G", "-1", "1.5G", "10X", "10 G", "999999999T", "99999999999", "1g"} {
		_, err := parseSize(text)
		assert.ErrorContains(t, err, "--cache-size", text)
	}
}
