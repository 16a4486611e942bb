package main

import (
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// setContainerdLog gives the packages of containerd our level and format.
func setContainerdLog(c LogConfig) {
	format := log.TextFormat
	if c.Format == "json" {
		format = log.JSONFormat
	}
	if err := log.SetFormat(format); err != nil {
		panic(err) // Validate has seen it
	}
	level, err := logrus.ParseLevel(c.Level)
	if err != nil {
		level = logrus.InfoLevel
	}
	logrus.SetLevel(level)
}
