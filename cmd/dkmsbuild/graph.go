package main

import "slices"

// A need is a job that must have ended before another one begins.
type need struct {
	job int
	// hard is a need by BUILD_DEPENDS. Any other comes from the Depends of the
	// package, and does not say which of its modules must be there.
	hard bool
}

// A graph lists for each job what it needs.
type graph [][]need

// untie makes the graph one without cycles. A need by Depends that closes a cycle
// is given up, as dpkg does when it configures packages. The jobs of a cycle of
// hard needs lose what they need of each other, and cycles has for each of these
// jobs the way back to itself: the job, what it needs, …, the job again.
func (g graph) untie() (cycles map[int][]int) {
	g.dropInside(g.components(), func(n need) bool { return !n.hard })
	component := g.components()
	cycles = map[int][]int{}
	for job := range g {
		if way := g.wayBack(job, component); way != nil {
			cycles[job] = way
		}
	}
	g.dropInside(component, func(need) bool { return true })
	return cycles
}

// dropInside drops the needs within one component that drop names.
func (g graph) dropInside(component []int, drop func(need) bool) {
	for job := range g {
		g[job] = slices.DeleteFunc(g[job], func(n need) bool { return component[n.job] == component[job] && drop(n) })
	}
}

// components gives jobs that need each other, over however many steps, the same
// number (Tarjan's strongly connected components).
func (g graph) components() []int {
	const unseen = -1
	component, seen, low := make([]int, len(g)), make([]int, len(g)), make([]int, len(g))
	for i := range g {
		component[i], seen[i] = unseen, unseen
	}
	count, clock := 0, 0
	var stack []int
	var visit func(job int)
	visit = func(job int) {
		seen[job], low[job] = clock, clock
		clock++
		stack = append(stack, job)
		for _, n := range g[job] {
			if seen[n.job] == unseen {
				visit(n.job)
				low[job] = min(low[job], low[n.job])
			} else if component[n.job] == unseen {
				low[job] = min(low[job], seen[n.job])
			}
		}
		if low[job] != seen[job] {
			return
		}
		for component[job] == unseen {
			component[stack[len(stack)-1]] = count
			stack = stack[:len(stack)-1]
		}
		count++
	}
	for job := range g {
		if seen[job] == unseen {
			visit(job)
		}
	}
	return component
}

// wayBack is the shortest way along needs from a job to itself, or nil.
func (g graph) wayBack(job int, component []int) []int {
	from := map[int]int{}
	for queue := []int{job}; len(queue) > 0; queue = queue[1:] {
		for _, n := range g[queue[0]] {
			if component[n.job] != component[job] {
				continue
			}
			if n.job == job {
				way := []int{job}
				for at := queue[0]; at != job; at = from[at] {
					way = append(way, at)
				}
				way = append(way, job)
				slices.Reverse(way)
				return way
			}
			if _, known := from[n.job]; !known {
				from[n.job] = queue[0]
				queue = append(queue, n.job)
			}
		}
	}
	return nil
}

// closure lists all that a job needs, over however many steps, each after what it
// needs itself. What skip names is left out, with all that it alone needs. There
// must be no cycles.
func (g graph) closure(job int, skip func(int) bool) []int {
	var list []int
	seen := map[int]bool{}
	var visit func(int)
	visit = func(at int) {
		for _, n := range g[at] {
			if !seen[n.job] && !skip(n.job) {
				seen[n.job] = true
				visit(n.job)
				list = append(list, n.job)
			}
		}
	}
	visit(job)
	return list
}
