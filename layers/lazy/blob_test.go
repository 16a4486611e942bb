package lazy

import "context"

// blob is 100 bytes that are nothing.
type blob struct{}

func (blob) Size() int64 { return 100 }

func (blob) ReadAt(_ context.Context, p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}
