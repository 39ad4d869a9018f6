from meguri_inference.app import build

if __name__ == "__main__":
    build().serve()
