package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// graphOf reads "a; b: a; c: a b?": c needs a by BUILD_DEPENDS and b by Depends.
func graphOf(t *testing.T, text string) (g graph, names []string) {
	t.Helper()
	lines := strings.Split(text, "; ")
	for _, line := range lines {
		name, _, _ := strings.Cut(line, ":")
		names = append(names, name)
	}
	for _, line := range lines {
		_, needs, _ := strings.Cut(line, ":")
		var list []need
		for _, n := range strings.Fields(needs) {
			name, soft := strings.CutSuffix(n, "?")
			at := slices.Index(names, name)
			assert.Assert(t, at >= 0, name)
			list = append(list, need{at, !soft})
		}
		g = append(g, list)
	}
	return g, names
}

// spell is the reverse of graphOf.
func spell(g graph, names []string) string {
	var lines []string
	for job, needs := range g {
		line := names[job]
		for i, n := range needs {
			if i == 0 {
				line += ":"
			}
			line += " " + names[n.job]
			if !n.hard {
				line += "?"
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "; ")
}

func TestUntie(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, graph, want, cycles string }{
		{"nothing", "a; b", "a; b", ""},
		{"a chain", "c: b; b: a; a", "c: b; b: a; a", ""},
		{"a diamond", "d: b c; b: a; c: a; a", "d: b c; b: a; c: a; a", ""},
		{"itself", "a: a; b: a; c", "a; b: a; c", "a a"},
		{"two", "a: b; b: a; c: a; d", "a; b; c: a; d", "a b a, b a b"},
		{"three, with a way in and one out", "a: b; b: c; c: a out; in: b; out", "a; b; c: out; in: b; out", "a b c a, b c a b, c a b c"},
		{"a short way in a long cycle", "a: b; b: c a; c: a", "a; b; c", "a b a, b a b, c a b c"},
		{"Depends may be mutual", "a: b?; b: a?", "a; b", ""},
		{"Depends gives way to BUILD_DEPENDS", "a: b?; b: a", "a; b: a", ""},
		{"a cycle through Depends and BUILD_DEPENDS", "a: b; b: c?; c: a", "a: b; b; c: a", ""},
		{"a hard cycle beside a soft one", "a: b c?; b: a; c: a?", "a; b; c", "a b a, b a b"},
		{"two cycles", "a: b; b: a; c: d; d: c a", "a; b; c; d: a", "a b a, b a b, c d c, d c d"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g, names := graphOf(t, tt.graph)
			ways := g.untie()
			var cycles []string
			for job := range g {
				if way := ways[job]; way != nil {
					var text []string
					for _, j := range way {
						text = append(text, names[j])
					}
					cycles = append(cycles, strings.Join(text, " "))
				}
			}
			assert.Equal(t, spell(g, names), tt.want)
			assert.Equal(t, strings.Join(cycles, ", "), tt.cycles)
		})
	}
}

func TestClosure(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, graph, without, want string }{
		{"nothing", "x", "", ""},
		{"what is needed comes first", "x: c b; c: b; b: a; a", "", "a b c"},
		{"once", "x: b c; b: a; c: a; a", "", "a b c"},
		{"left out", "x: b c; b: a; c; a", "b", "c"},
		{"left out on one way", "x: b c; b: a; c: a; a", "b", "a c"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g, names := graphOf(t, tt.graph)
			var got []string
			for _, job := range g.closure(0, func(job int) bool { return names[job] == tt.without }) {
				got = append(got, names[job])
			}
			assert.Equal(t, strings.Join(got, " "), tt.want)
		})
	}
}

// A trace is what a fake run of jobs saw.
type trace struct {
	mu             sync.Mutex
	running, cores int
	mostRunning    int
	mostCores      int
}

func (tr *trace) begin(cores int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.running++
	tr.cores += cores
	tr.mostRunning, tr.mostCores = max(tr.mostRunning, tr.running), max(tr.mostCores, tr.cores)
}

func (tr *trace) end(cores int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.running--
	tr.cores -= cores
}

func never(int) bool { return false }

// TestScheduleOrder: whatever the jobs take, each comes after its needs, and no
// limit is passed.
func TestScheduleOrder(t *testing.T) {
	t.Parallel()
	for round := range 200 {
		random := rand.New(rand.NewPCG(uint64(round), 1))
		g := make(graph, 1+random.IntN(40))
		for job := range g {
			for range random.IntN(4) {
				if job > 0 {
					g[job] = append(g[job], need{random.IntN(job), random.IntN(2) == 0})
				}
			}
		}
		most := slots{1 + random.IntN(6), 1 + random.IntN(8)}
		take := make([]time.Duration, len(g))
		for job := range take {
			take[job] = time.Duration(random.IntN(50)) * time.Microsecond
		}
		var tr trace
		var order []int
		err := schedule(t.Context(), g, never, most, func(job, cores int) error {
			tr.begin(cores)
			time.Sleep(take[job])
			tr.end(cores)
			return nil
		}, func(job int) {
			for _, n := range g[job] {
				assert.Assert(t, slices.Contains(order, n.job), "%d came before %d", job, n.job)
			}
			order = append(order, job)
		})
		assert.NilError(t, err)
		assert.Equal(t, len(order), len(g))
		assert.Assert(t, tr.mostRunning <= most.jobs)
		assert.Assert(t, tr.mostCores <= max(most.jobs, most.cores), "%d cores, %+v", tr.mostCores, most)
	}
}

// TestScheduleShares: jobs that begin together divide the cores, and what must run
// alone has them all.
func TestScheduleShares(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, graph, settled string
		most                 slots
		want                 string // in the order in which they begin
	}{
		{"one", "a", "", slots{4, 8}, "a8"},
		{"two", "a; b", "", slots{4, 8}, "a4 b4"},
		{"an odd number", "a; b; c", "", slots{3, 8}, "a2 b3 c3"},
		{"more jobs than cores", "a; b; c", "", slots{3, 2}, "a1 b1 c1"},
		{"few at a time", "a; b; c; d", "", slots{2, 8}, "a4 b4 c4 d4"},
		{"one at a time", "a; b", "", slots{1, 8}, "a8 b8"},
		{"a chain", "a: b; b: c; c", "", slots{4, 8}, "a8 b8 c8"},
		{"what is settled needs nothing", "a: b; b: c; c; d: c", "b c", slots{4, 8}, "a4 d4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g, names := graphOf(t, tt.graph)
			var mu sync.Mutex
			var began []string
			settled := func(job int) bool { return slices.Contains(strings.Fields(tt.settled), names[job]) }
			err := schedule(t.Context(), g, settled, tt.most, func(job, cores int) error {
				mu.Lock()
				began = append(began, fmt.Sprintf("%s%d", names[job], cores))
				mu.Unlock()
				time.Sleep(20 * time.Millisecond)
				return nil
			}, func(int) {})
			assert.NilError(t, err)
			want := strings.Fields(tt.want)
			if tt.most.jobs > 1 { // what begins together does so in no order
				slices.Sort(began)
				slices.Sort(want)
			}
			assert.DeepEqual(t, began, want)
		})
	}
}

// TestScheduleEnds: after an error or an interruption nothing begins, and what
// runs comes to its end.
func TestScheduleEnds(t *testing.T) {
	t.Parallel()
	broken := errors.New("the disk is full")
	ctx, cancel := context.WithCancelCause(t.Context())
	for _, tt := range []struct {
		name string
		ctx  context.Context
		want error
		stop func() error
	}{
		{"error", t.Context(), broken, func() error { return broken }},
		{"interruption", ctx, context.Canceled, func() error { cancel(context.Canceled); return nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, _ := graphOf(t, "a; b; c; d: b; e")
			var tr trace
			both := make(chan struct{}, 2)
			var ended []int
			err := schedule(tt.ctx, g, never, slots{2, 2}, func(job, cores int) error {
				tr.begin(cores)
				defer tr.end(cores)
				assert.Check(t, job < 2, "%d began", job)
				both <- struct{}{}
				if job == 0 {
					for len(both) < 2 {
						time.Sleep(time.Millisecond)
					}
					return tt.stop()
				}
				time.Sleep(50 * time.Millisecond)
				return nil
			}, func(job int) { ended = append(ended, job) })
			assert.ErrorIs(t, err, tt.want)
			assert.Equal(t, tr.running, 0)
			assert.Assert(t, slices.Contains(ended, 1), "what ran beside it is lost")
		})
	}
}
