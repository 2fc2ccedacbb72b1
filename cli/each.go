package cli

import (
	"context"
	"sync"
)

// atOnce is how many objects one command works on at the same time: most of that time is waiting for the kernel.
const atOnce = 16

// forEach calls do for each argument, several at once, and prints what it returns, one line each, in the order of the
// arguments and as soon as it is known. An argument that fails is reported and does not keep the others from being
// done; the exit code is then 1.
func (a *app) forEach(ctx context.Context, args []string, do func(context.Context, string) (string, error)) error {
	type result struct {
		text string
		err  error
		done chan struct{}
	}
	results := make([]result, len(args))
	for i := range results {
		results[i].done = make(chan struct{})
	}
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(atOnce, len(args)) {
		workers.Go(func() {
			for i := range next {
				r := &results[i]
				if r.err = ctx.Err(); r.err == nil {
					r.text, r.err = do(ctx, args[i])
				}
				close(r.done)
			}
		})
	}
	go func() {
		for i := range args {
			next <- i
		}
		close(next)
	}()
	defer workers.Wait()
	failed := 0
	var last error
	for i := range results {
		r := &results[i]
		<-r.done
		if r.err != nil {
			if failed++; last != nil {
				a.report(last)
			}
			last = r.err
			continue
		}
		if r.text != "" {
			if err := a.print(r.text + "\n"); err != nil {
				return err
			}
		}
	}
	return last
}
