package main

import (
	"context"
	"errors"
)

func sample(ctx context.Context, cache string) (string, error) {
	return "", errors.New("-corpus: not given")
}
