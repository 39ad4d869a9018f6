from meguri_training.app import build

if __name__ == "__main__":
    build().serve()
