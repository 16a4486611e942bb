package layers

import "context"

type backgroundKey struct{}

// Background marks the work under ctx as such that nobody waits for, until hurry
// is closed; nil is never. Where bandwidth is limited, such work gets what
// readers leave.
func Background(ctx context.Context, hurry <-chan struct{}) context.Context {
	return context.WithValue(ctx, backgroundKey{}, hurry)
}

// IsBackground reports whether the work under ctx is marked by [Background] and
// nobody is in a hurry yet, and what is closed when somebody is.
func IsBackground(ctx context.Context) (bool, <-chan struct{}) {
	hurry, is := ctx.Value(backgroundKey{}).(<-chan struct{})
	if !is {
		return false, nil
	}
	select {
	case <-hurry:
		return false, nil
	default:
		return true, hurry
	}
}
