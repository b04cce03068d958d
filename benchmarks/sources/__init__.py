"""What is made of tables and documents."""
