"""One small module a verb of the command line; heavy imports happen inside."""
