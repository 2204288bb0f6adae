"""What goes on without a client waiting: files, fine-tuning jobs, batches."""
