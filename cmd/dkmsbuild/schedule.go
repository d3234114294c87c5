package main

import (
	"context"
	"slices"
)

// Slots are what jobs share.
type slots struct {
	jobs  int // that run at a time
	cores int // that they divide among them
}

// schedule runs the jobs side by side, each after all that it needs, the first of
// those that may begin first. Settled jobs count as ended from the beginning.
//
// Each job is told its share of the cores: those that are free are divided among
// the jobs that can begin now, and none gets less than one. A job keeps its share
// until it ends, and what finds no core free waits, so that all cores are busy as long
// as there is work for them, and none has two jobs unless more are allowed than there
// are cores.
//
// run is called in a goroutine of its own, ended in that of the caller. After an
// error, or when ctx is done, nothing new begins, and schedule returns when all that
// runs has come to its end.
func schedule(ctx context.Context, g graph, settled func(job int) bool, most slots, run func(job, cores int) error, ended func(job int)) error {
	type end struct {
		job, cores int
		err        error
	}
	ends := make(chan end)
	waits := make([]int, len(g)) // for so many
	follow := make([][]int, len(g))
	var ready []int
	for job, needs := range g {
		if settled(job) {
			continue
		}
		for _, n := range needs {
			if !settled(n.job) {
				waits[job]++
				follow[n.job] = append(follow[n.job], job)
			}
		}
		if waits[job] == 0 {
			ready = append(ready, job)
		}
	}
	var failed error
	running, free := 0, max(most.cores, most.jobs)
	for {
		for failed == nil && ctx.Err() == nil && len(ready) > 0 && running < most.jobs && free > 0 {
			job := ready[0]
			cores := min(most.cores, max(1, free/min(len(ready), most.jobs-running)))
			ready = ready[1:]
			running++
			free -= cores
			go func() { ends <- end{job, cores, run(job, cores)} }()
		}
		if running == 0 {
			break
		}
		e := <-ends
		running--
		free += e.cores
		if e.err != nil {
			if failed == nil {
				failed = e.err
			}
			continue
		}
		for _, job := range follow[e.job] {
			if waits[job]--; waits[job] == 0 {
				at, _ := slices.BinarySearch(ready, job)
				ready = slices.Insert(ready, at, job)
			}
		}
		ended(e.job)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return failed
}
